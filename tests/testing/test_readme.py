"""The example in the documentation is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"


async def test_the_example_of_a_tested_task_passes() -> None:
    section = README.read_text().partition("### Testing your tasks\n")[2].partition("\n#")[0]
    names: dict[str, Any] = {"__name__": "readme"}
    exec("\n".join(re.findall(r"```python\n(.*?)```", section, re.S)), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        await test()
