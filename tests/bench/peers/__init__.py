"""The contestants, each driven the same way by `contract.main`, in a process of its own with its own environment."""
