-- Renews values that were read. KEYS: uses, sizes, then the values. ARGV: the expiry in seconds.
local uses, sizes, expiry = KEYS[1], KEYS[2], tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for i = 3, #KEYS do
    if redis.call('EXPIRE', KEYS[i], expiry) == 1 then
        redis.call('ZADD', uses, 'XX', now, KEYS[i])
    end
end
redis.call('EXPIRE', uses, expiry)
redis.call('EXPIRE', sizes, expiry)
