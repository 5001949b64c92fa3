-- Stores a value within the bound. KEYS: uses, sizes, the value. ARGV: the bytes, the expiry in seconds, the most bytes of
-- all values, the bytes that a value costs besides its own. Gives how many others were dropped for it.
local uses, sizes, key = KEYS[1], KEYS[2], KEYS[3]
local expiry, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local size = #ARGV[1] + tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
-- Where Redis evicted one of the books, the other one counts values that nobody would ever drop.
local is_lost = redis.call('EXISTS', uses) == 0
local total = is_lost and 0 or tonumber(redis.call('HGET', sizes, 'total') or 0)
local old = is_lost and 0 or tonumber(redis.call('HGET', sizes, key) or 0)
local dropped = 0

-- The longest unused gives way, until so many bytes are free; the value itself is the last used.
local function make_room(bytes)
    while bytes > 0 do
        local oldest = redis.call('ZRANGE', uses, 0, 0)[1]
        if not oldest or oldest == key then return end
        bytes = bytes - drop(uses, sizes, oldest)
        dropped = dropped + 1
    end
end

-- The first write: a Redis that is full refuses it, and nothing has been changed yet.
local written = redis.pcall('ZADD', uses, now, key)
if type(written) == 'table' and written.err then
    -- Full of silk's own values, these make room for it; full of others', silk has no business there.
    if not string.find(written.err, 'OOM') or total - old < size then return written end
    redis.call('ZREM', uses, key)
    make_room(size)
    redis.call('ZADD', uses, now, key)
end
if is_lost then redis.call('DEL', sizes) end
-- Those whose time is over are gone already; a few at a time are forgotten here.
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', uses, '-inf', now - expiry, 'LIMIT', 0, 100)) do
    drop(uses, sizes, gone)
end
if old > 0 then
    redis.call('HDEL', sizes, key)
    redis.call('HINCRBY', sizes, 'total', -old)
end
make_room(tonumber(redis.call('HGET', sizes, 'total') or 0) + size - most)
redis.call('SET', key, ARGV[1], 'EX', expiry)
redis.call('HSET', sizes, key, size)
redis.call('HINCRBY', sizes, 'total', size)
redis.call('EXPIRE', uses, expiry)
redis.call('EXPIRE', sizes, expiry)
return dropped
