-- Whether a limit has ever been lowered: then a slot that is freed may be one too many, and is not handed on uncounted.
ALTER TABLE {schema}.limits ADD COLUMN lowered boolean NOT NULL DEFAULT true;
ALTER TABLE {schema}.limits ALTER COLUMN lowered SET DEFAULT false;
