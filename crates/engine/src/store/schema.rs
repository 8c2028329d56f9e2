//! The tables, as steps from an empty database to the present one.

use std::path::Path;

use rusqlite::Connection;

use crate::error::OpenError;

/// One step for each version. A step that was released is never changed: a new one follows it.
const STEPS: &[&str] = &[
    "
    CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        owner INTEGER NOT NULL,
        state TEXT NOT NULL,
        reason TEXT,
        spec TEXT NOT NULL,
        record TEXT,
        granted TEXT,
        image TEXT,
        created_ms INTEGER NOT NULL,
        changed_ms INTEGER NOT NULL,
        lifetime_done INTEGER NOT NULL,
        keep_persist INTEGER NOT NULL,
        UNIQUE (owner, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE execs (
        sandbox TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        id TEXT NOT NULL,
        spec TEXT NOT NULL,
        started_ms INTEGER NOT NULL,
        ended_ms INTEGER,
        ending TEXT,
        last_seq INTEGER NOT NULL,
        PRIMARY KEY (sandbox, id)
    ) STRICT, WITHOUT ROWID;
",
    "
    -- Owners are principals and no longer only users of the host. A table that others refer to is
    -- never dropped while they do: that would remove their rows too.
    CREATE TABLE new_sandboxes (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        owner TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT,
        spec TEXT NOT NULL,
        record TEXT,
        granted TEXT,
        image TEXT,
        created_ms INTEGER NOT NULL,
        changed_ms INTEGER NOT NULL,
        lifetime_done INTEGER NOT NULL,
        keep_persist INTEGER NOT NULL,
        UNIQUE (owner, name)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO new_sandboxes SELECT id, name, 'uid:' || owner, state, reason, spec, record,
        granted, image, created_ms, changed_ms, lifetime_done, keep_persist FROM sandboxes;
    CREATE TABLE new_execs (
        sandbox TEXT NOT NULL REFERENCES new_sandboxes (id) ON DELETE CASCADE,
        id TEXT NOT NULL,
        spec TEXT NOT NULL,
        started_ms INTEGER NOT NULL,
        ended_ms INTEGER,
        ending TEXT,
        last_seq INTEGER NOT NULL,
        PRIMARY KEY (sandbox, id)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO new_execs SELECT sandbox, id, spec, started_ms, ended_ms, ending, last_seq
        FROM execs;
    DROP TABLE execs;
    DROP TABLE sandboxes;
    ALTER TABLE new_sandboxes RENAME TO sandboxes;
    ALTER TABLE new_execs RENAME TO execs;
",
    "
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        principal TEXT NOT NULL,
        role TEXT NOT NULL,
        hash BLOB NOT NULL,
        quotas TEXT NOT NULL,
        made_with TEXT,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER,
        used_ms INTEGER,
        UNIQUE (principal, name)
    ) STRICT, WITHOUT ROWID;
",
    "
    ALTER TABLE sandboxes ADD COLUMN provenance TEXT;
    CREATE TABLE templates (
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        shared INTEGER NOT NULL,
        version INTEGER NOT NULL,
        spec TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        changed_ms INTEGER NOT NULL,
        PRIMARY KEY (owner, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE pools (
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        template_owner TEXT NOT NULL,
        template_name TEXT NOT NULL,
        fixed INTEGER NOT NULL,
        min INTEGER NOT NULL,
        max INTEGER NOT NULL,
        draining INTEGER NOT NULL,
        configured INTEGER NOT NULL,
        created_ms INTEGER NOT NULL,
        PRIMARY KEY (owner, name)
    ) STRICT, WITHOUT ROWID;
",
    "
    -- Idempotency keys: a creation that is asked for again finds what the first made.
    CREATE TABLE once (
        owner TEXT NOT NULL,
        key TEXT NOT NULL,
        request TEXT NOT NULL,
        sandbox TEXT NOT NULL,
        made_ms INTEGER NOT NULL,
        done INTEGER NOT NULL,
        PRIMARY KEY (owner, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX once_by_sandbox ON once (sandbox);
    CREATE INDEX once_by_time ON once (made_ms);
    CREATE TRIGGER once_done AFTER UPDATE OF state ON sandboxes
        WHEN OLD.state = 'creating' AND NEW.state = 'running'
        BEGIN UPDATE once SET done = 1 WHERE sandbox = NEW.id; END;
    -- What was never made leaves its key free.
    CREATE TRIGGER once_undone AFTER DELETE ON sandboxes
        BEGIN DELETE FROM once WHERE sandbox = OLD.id AND done = 0; END;
    -- Written to see whether it can be.
    CREATE TABLE readiness (one INTEGER PRIMARY KEY CHECK (one = 1), at_ms INTEGER NOT NULL) STRICT;
",
    "
    -- What happened. It is written here, by triggers, so that it is in the same transaction as the
    -- change itself and nobody can forget it. A sandbox that waits in a pool is nobody's yet.
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        kind TEXT NOT NULL,
        owner TEXT NOT NULL,
        sandbox TEXT,
        name TEXT,
        exec TEXT,
        key TEXT,
        pool TEXT,
        reason TEXT,
        ending TEXT
    ) STRICT;
    CREATE TRIGGER events_bounded AFTER INSERT ON events
        BEGIN DELETE FROM events WHERE seq <= NEW.seq - 50000; END;
    CREATE TRIGGER event_sandbox_created AFTER INSERT ON sandboxes
        WHEN json_extract(NEW.provenance, '$.waiting') IS NULL
        BEGIN INSERT INTO events (at_ms, kind, owner, sandbox, name)
            VALUES (NEW.created_ms, 'sandbox.created', NEW.owner, NEW.id, NEW.name); END;
    CREATE TRIGGER event_sandbox_changed AFTER UPDATE ON sandboxes
        WHEN NEW.state != OLD.state AND NEW.state IN ('running', 'paused', 'stopped', 'failed')
            AND json_extract(NEW.provenance, '$.waiting') IS NULL
        BEGIN INSERT INTO events (at_ms, kind, owner, sandbox, name, reason)
            VALUES (NEW.changed_ms, 'sandbox.' || NEW.state, NEW.owner, NEW.id, NEW.name,
                NEW.reason); END;
    CREATE TRIGGER event_sandbox_claimed AFTER UPDATE ON sandboxes
        WHEN json_extract(OLD.provenance, '$.waiting') IS NOT NULL
            AND json_extract(NEW.provenance, '$.waiting') IS NULL
        BEGIN INSERT INTO events (at_ms, kind, owner, sandbox, name, pool)
            VALUES (NEW.changed_ms, 'sandbox.claimed', NEW.owner, NEW.id, NEW.name,
                json_extract(NEW.provenance, '$.template.pool')); END;
    CREATE TRIGGER event_sandbox_removed AFTER DELETE ON sandboxes
        WHEN json_extract(OLD.provenance, '$.waiting') IS NULL
        BEGIN INSERT INTO events (at_ms, kind, owner, sandbox, name, reason)
            VALUES (CAST(unixepoch('subsec') * 1000 AS INTEGER), 'sandbox.removed', OLD.owner,
                OLD.id, OLD.name, OLD.reason); END;
    CREATE TRIGGER event_pool_refilled AFTER UPDATE ON sandboxes
        WHEN OLD.state = 'creating' AND NEW.state = 'running'
            AND json_extract(NEW.provenance, '$.waiting') IS NOT NULL
        BEGIN INSERT INTO events (at_ms, kind, owner, sandbox, pool)
            VALUES (NEW.changed_ms, 'pool.refilled', NEW.owner, NEW.id,
                json_extract(NEW.provenance, '$.template.pool')); END;
    CREATE TRIGGER event_exec_started AFTER INSERT ON execs
        BEGIN INSERT INTO events (at_ms, kind, owner, sandbox, name, exec)
            SELECT NEW.started_ms, 'exec.started', owner, id, name, NEW.id FROM sandboxes
                WHERE id = NEW.sandbox; END;
    CREATE TRIGGER event_exec_ended AFTER UPDATE ON execs
        WHEN OLD.ending IS NULL AND NEW.ending IS NOT NULL
        BEGIN INSERT INTO events (at_ms, kind, owner, sandbox, name, exec, ending)
            SELECT coalesce(NEW.ended_ms, NEW.started_ms), 'exec.ended', owner, id, name, NEW.id,
                NEW.ending FROM sandboxes WHERE id = NEW.sandbox; END;
    -- With its sandbox goes an exec without a word: the sandbox's own event says it.
    CREATE TRIGGER event_exec_failed AFTER DELETE ON execs WHEN OLD.ending IS NULL
        BEGIN INSERT INTO events (at_ms, kind, owner, sandbox, name, exec)
            SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER), 'exec.failed', owner, id, name,
                OLD.id FROM sandboxes WHERE id = OLD.sandbox; END;
    CREATE TRIGGER event_key_created AFTER INSERT ON keys
        BEGIN INSERT INTO events (at_ms, kind, owner, name, key)
            VALUES (NEW.created_ms, 'key.created', NEW.principal, NEW.name, NEW.id); END;
    CREATE TRIGGER event_key_revoked AFTER DELETE ON keys
        BEGIN INSERT INTO events (at_ms, kind, owner, name, key)
            VALUES (CAST(unixepoch('subsec') * 1000 AS INTEGER), 'key.revoked', OLD.principal,
                OLD.name, OLD.id); END;
",
];

/// Brings a database to the present version, each step in a transaction of its own.
pub(super) fn migrate(
    connection: &mut Connection,
    path: &Path,
    failed: impl FnOnce(rusqlite::Error) -> OpenError,
) -> Result<(), OpenError> {
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    let found: i64 = match connection.query_row("PRAGMA user_version", [], |row| row.get(0)) {
        Ok(found) => found,
        Err(error) => return Err(failed(error)),
    };
    if found > known {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    apply(connection, found).map_err(failed)
}

fn apply(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let mut version = 0i64;
    for step in STEPS {
        version += 1;
        if version <= found {
            continue;
        }
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}
