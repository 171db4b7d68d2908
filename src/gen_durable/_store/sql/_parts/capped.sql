-- The queues for which a cap holds in the whole cluster: then only who has counted what it runs may claim.
-- An expression of statements, asked for once in each; "is_capped" is the same for functions.
ARRAY(SELECT c.name FROM {schema}.limits c WHERE c.kind = 'queue' AND c.amount IS NOT NULL)
