-- As enqueue.lua, for tasks of which some are under a key or in a group. Includes it as `enqueue`, with the functions of
-- keyed.lua.
--
-- KEYS: none
-- ARGV: those of enqueue.lua
-- returns: what enqueue.lua does
return enqueue(ARGV)
