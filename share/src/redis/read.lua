-- Reads values and renews them. KEYS: uses, sizes, then the values. ARGV: the most bytes of a value, of all, the expiry.
-- Gives for each value its bytes, nil if there is none, or its size where that is too much.
local uses, sizes = KEYS[1], KEYS[2]
local most, left, expiry = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local answer = {}
for i = 3, #KEYS do
    local key = KEYS[i]
    local size = redis.pcall('STRLEN', key)
    if type(size) ~= 'number' then -- not a string: it is not ours
        answer[i - 2] = 0
    elseif size == 0 then
        answer[i - 2] = false
    elseif size > most or size > left then
        answer[i - 2] = size
    else
        left = left - size
        answer[i - 2] = redis.call('GET', key)
        -- On a full or read-only Redis the values can still be read, only not renewed.
        redis.pcall('EXPIRE', key, expiry)
        redis.pcall('ZADD', uses, 'XX', now, key)
    end
end
redis.pcall('EXPIRE', uses, expiry)
redis.pcall('EXPIRE', sizes, expiry)
return answer
