-- Format 5 of the buffer. What is listed and updated (event) lies apart from the bytes
-- (payload, piece), so that settling an event never rewrites its body.

CREATE TABLE event (
    seq         INTEGER PRIMARY KEY,         -- the order of arrival; none is given twice
    id          BLOB    NOT NULL UNIQUE,     -- UUID v7, 16 bytes
    received_at INTEGER NOT NULL,            -- all times: ms since 1970, UTC
    stored_at   INTEGER NOT NULL,            -- when its commit began
    state       INTEGER NOT NULL,            -- 0 pending, 1 delivered, 2 dead
    kind        TEXT    NOT NULL,
    model       TEXT,
    uid         TEXT,
    document    TEXT,                        -- documentId, or the row id
    is_document_id INTEGER NOT NULL,         -- 1: document is a documentId
    locale      TEXT,
    destination TEXT,                        -- NULL: no route
    options     TEXT    NOT NULL,
    size        INTEGER NOT NULL,            -- bytes of the body
    is_text     INTEGER NOT NULL,            -- 1: headers and body are UTF-8
    attempts    INTEGER NOT NULL,
    replays     INTEGER NOT NULL DEFAULT 0,
    due_at      INTEGER NOT NULL,
    settled_at  INTEGER,
    message_ids TEXT,                        -- QStash's, one a line
    reason      TEXT                         -- why dead, or why not delivered yet
);
CREATE INDEX event_pending   ON event (seq)        WHERE state = 0;
CREATE INDEX event_delivered ON event (settled_at) WHERE state = 1;
CREATE INDEX event_dead      ON event (seq)        WHERE state = 2;

-- A checksum, since SQLite has none: what a failing disk made of a body must not be published.
CREATE TABLE payload (
    seq     INTEGER PRIMARY KEY,
    headers BLOB    NOT NULL,                -- name: value, CRLF between
    pieces  INTEGER NOT NULL,                -- 0: the body is here; else in so many pieces
    body    BLOB    NOT NULL,
    crc     INTEGER NOT NULL                 -- CRC-32 of headers and body
);

-- Large bodies, so that writing and reading one takes the memory of a piece.
CREATE TABLE piece (
    place INTEGER PRIMARY KEY,               -- seq << 16 | number
    bytes BLOB    NOT NULL,
    crc   INTEGER NOT NULL
);

-- What an event went through before the state that its row tells: for people, never read on
-- the way of an event. At most 16 rows an event, and none for one that passed at once.
CREATE TABLE step (
    place    INTEGER PRIMARY KEY,            -- seq << 16 | number
    what     INTEGER NOT NULL,               -- 0 attempt failed, 1 delivered, 2 dead, 3 replayed
    first_at INTEGER NOT NULL,
    last_at  INTEGER NOT NULL,
    count    INTEGER NOT NULL,               -- so many in a row, with the same words
    words    TEXT    NOT NULL                -- why it failed, or QStash's message ids
);

-- How many events are in each state, and what became of those that are here no more: one row. The
-- events behind `last` are not counted in it yet, all of them are pending: see count.rs.
CREATE TABLE tally (
    last      INTEGER NOT NULL,              -- the highest seq that was given
    pending   INTEGER NOT NULL,
    delivered INTEGER NOT NULL,
    dead      INTEGER NOT NULL,
    forgotten INTEGER NOT NULL,              -- delivered and no longer kept
    discarded INTEGER NOT NULL,              -- by hand
    accepted  INTEGER NOT NULL,              -- all that ever came: the sum of all others
    lost      INTEGER NOT NULL               -- with a damaged file
);
INSERT INTO tally VALUES (0, 0, 0, 0, 0, 0, 0, 0);
