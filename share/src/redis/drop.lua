-- Forgets a value and what was counted for it; gives the bytes that became free.
local function drop(uses, sizes, key)
    local size = tonumber(redis.call('HGET', sizes, key) or 0)
    redis.call('DEL', key)
    redis.call('ZREM', uses, key)
    if size > 0 then
        redis.call('HDEL', sizes, key)
        redis.call('HINCRBY', sizes, 'total', -size)
    end
    return size
end
