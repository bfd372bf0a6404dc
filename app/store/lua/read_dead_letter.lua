-- Reads a dead letter, or what is known of one that was replayed.
--
-- KEYS: none
-- ARGV: id
-- returns: {fields, steps}: no fields: no such letter; fields without `failed_at`: it was replayed, as `replayed_as`; steps are
--   numbers and facts (JSON) of the completed ones
local fields = redis.call('HGETALL', K.dead_letter .. ARGV[1])
return { fields, is_buried(ARGV[1]) and step_facts(ARGV[1]) or {} }
