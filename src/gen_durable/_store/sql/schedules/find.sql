-- One schedule, with the clock; one row also where there is none.
--
-- Parameters: name.
-- Locks: none.
-- Index: schedules' unique constraint on name, lanes' primary key.
SELECT {clock}, s.id, s.rev, s.cron, s.every, s.tz, s.anchor, s.lane, s.step, s.state::text, s.priority, s.time_field, l.machine,
    lower(s.forgotten), upper(s.forgotten), s.gate, s.own_gate, s.rate, s.weight
FROM (SELECT %(name)s::text AS name) n
LEFT JOIN {schema}.schedules s ON s.name = n.name
LEFT JOIN {schema}.lanes l ON l.id = s.lane
