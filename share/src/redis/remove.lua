-- Removes a value if it still ends with this seal. KEYS: uses, sizes, the value. ARGV: the seal.
local uses, sizes, key = KEYS[1], KEYS[2], KEYS[3]
if redis.call('GETRANGE', key, -#ARGV[1], -1) ~= ARGV[1] then return 0 end
drop(uses, sizes, key)
return 1
