//! The index's database: its tables, its version, how it is opened and what its errors mean.
//!
//! ```text
//! meta      one row: which repository, the counters, none of which ever goes back
//! packs     one row a pack; `run` is the run that holds its chunks
//! runs      one row a run
//! filters   the runs' filters, a piece a row; key: run << 24 | piece
//! suspects  snapshots that may need chunks of packs that vanished
//! run_N     the rows of run N in sorted pages, see `index::run`
//! ```
//!
//! Every row carries a checksum under the caller's key, `seal`, or begins with it; but for
//! suspects, one of which too many only costs look-ups. There are no
//! migrations: the index can be made anew from the packs, so one of another version is.

mod room;

use crate::error::{Error, IoContext, Result};
use crate::id::hex;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use rustix::io::Errno;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of the tables below; an index of any other is dropped and rebuilt.
pub const VERSION: u32 = 2;
/// What the index is called in errors.
pub const OBJECT: &str = "the index";

/// What SQLite may keep of the database in memory, in KiB.
const CACHE_KIB: i64 = 16 << 10;
/// How long a write waits for another process's, which may be a merge.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Statements kept prepared: one a run, and a few.
const STATEMENTS_MAX: usize = 128;
/// Beyond this the log is cut back once it was copied into the database.
const LOG_LEN_MAX: u32 = 16 << 20;
/// Tells our database from others: "varv".
const APPLICATION_ID: u32 = u32::from_be_bytes(*b"varv");

const TABLES: &str = "
    CREATE TABLE meta (
        repository BLOB NOT NULL, next_pack INTEGER NOT NULL, next_ordinal INTEGER NOT NULL,
        next_run INTEGER NOT NULL, removals INTEGER NOT NULL, seal BLOB NOT NULL);
    CREATE TABLE packs (
        number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, class INTEGER NOT NULL, len INTEGER NOT NULL,
        first_ordinal INTEGER NOT NULL, chunks INTEGER NOT NULL, trailer_check BLOB NOT NULL,
        run INTEGER NOT NULL, seal BLOB NOT NULL);
    CREATE TABLE runs (
        number INTEGER PRIMARY KEY, level INTEGER NOT NULL, rows INTEGER NOT NULL,
        filter_blocks INTEGER NOT NULL, checksum BLOB NOT NULL, seal BLOB NOT NULL);
    CREATE TABLE filters (piece INTEGER PRIMARY KEY, bits BLOB NOT NULL);
    CREATE TABLE suspects (snapshot BLOB PRIMARY KEY) WITHOUT ROWID;";

/// Whether the index may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Look-ups and changes, by several processes at once.
    ReadWrite,
    /// Look-ups on a medium or snapshot that nobody changes; creates no file beside the index.
    ReadOnly,
}

/// Opens an existing database file.
pub fn connect(path: &Path, access: Access) -> Result<Connection> {
    let (target, flags) = match access {
        Access::ReadWrite => (std::path::absolute(path).at("find", path)?, OpenFlags::SQLITE_OPEN_READ_WRITE),
        Access::ReadOnly => {
            (immutable_uri(path)?, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)
        }
    };
    if access == Access::ReadWrite {
        room::check(path)?;
    }
    let db = Connection::open_with_flags(target, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).during("open")?;
    configure(&db).during("open")?;
    if access == Access::ReadWrite {
        room::take(path, &db)?;
    }
    Ok(db)
}

/// Makes an empty database in memory.
pub fn create_in_memory() -> Result<Connection> {
    let db = Connection::open_in_memory().during("open")?;
    configure(&db).during("open")?;
    db.execute_batch(TABLES).during("create its tables")?;
    Ok(db)
}

/// Makes an empty database, readable by its owner alone; what was there is removed.
pub fn create(path: &Path) -> Result<Connection> {
    remove(path)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).at("create", path)?;
    let db = connect(path, Access::ReadWrite)?;
    let tables = format!(
        "BEGIN IMMEDIATE; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION}; {TABLES} COMMIT;"
    );
    db.execute_batch("PRAGMA page_size=4096; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL;")
        .and_then(|()| db.execute_batch(&tables))
        .during("create its tables")?;
    room::take(path, &db)?;
    Ok(db)
}

/// Removes the database and what belongs to it. Whoever has it open keeps what it sees: SQLite
/// notices that the file is no longer the named one and leaves the new one's log alone.
fn remove(path: &Path) -> Result<()> {
    for name in [path.to_path_buf(), beside(path, "-wal"), beside(path, "-shm"), beside(path, "-journal")] {
        match std::fs::remove_file(&name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).at("remove", &name),
            _ => {}
        }
    }
    Ok(())
}

/// The log beside the database at `path`.
pub fn log_path(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Why these are not the tables that this code knows, if they are not.
pub fn foreign(db: &Connection) -> Result<Option<String>> {
    let number =
        |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).during("read its version");
    if number("application_id")? != i64::from(APPLICATION_ID) {
        return Ok(Some("it is not an index of varv".into()));
    }
    let version = number("user_version")?;
    let other = version != i64::from(VERSION);
    Ok(other.then(|| format!("its version is {version}, this varv keeps {VERSION}")))
}

/// The file may come from a stranger: nothing in it but plain tables is to be believed, and a
/// damaged page is to be an error.
fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(WAIT_MAX)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // Losing the last additions in a power cut is harmless: the packs have them.
    db.execute_batch(&format!(
        "PRAGMA cell_size_check=ON; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-{CACHE_KIB};
         PRAGMA journal_size_limit={LOG_LEN_MAX};"
    ))
}

/// Checks that SQLite's own pages lead where they should: a look-up takes other ways through them
/// than a scan does.
pub fn check_structure(db: &Connection) -> Result<()> {
    let answer: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).during("be checked")?;
    if answer == "ok" { Ok(()) } else { Err(damaged(&answer)) }
}

/// Runs `f` without waiting for other writers.
pub fn without_waiting<T>(db: &Connection, f: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    db.busy_timeout(Duration::ZERO)?;
    let result = f();
    db.busy_timeout(WAIT_MAX)?;
    result
}

fn immutable_uri(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).at("find", path)?;
    let mut uri = String::from("file://");
    for &byte in absolute.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => uri.push(char::from(byte)),
            _ => {
                uri.push('%');
                uri.push_str(&hex(&[byte]));
            }
        }
    }
    uri.push_str("?immutable=1&mode=ro");
    Ok(uri.into())
}

/// Says what was tried when the database failed.
pub trait During<T> {
    /// `action` is a verb that fits "the index failed to …".
    fn during(self, action: &'static str) -> Result<T>;
}

impl<T> During<T> for rusqlite::Result<T> {
    fn during(self, action: &'static str) -> Result<T> {
        self.map_err(|e| match e.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => {
                Error::Io { action: "write", path: "index.sqlite".into(), source: Errno::NOSPC.into() }
            }
            Some(ErrorCode::DatabaseBusy) => {
                Error::Locked { holder: "another process writes its index".into() }
            }
            _ => Error::Index { action, source: Box::new(e) },
        })
    }
}

/// The index holds what it must not.
pub fn damaged(why: &str) -> Error {
    Error::damaged(OBJECT, why)
}

/// Whether `error` says that the index's file is damaged, so that making it anew helps.
pub fn is_corrupt(error: &Error) -> bool {
    match error {
        Error::Damaged { object, .. } => object == OBJECT,
        Error::Index { source, .. } => source.downcast_ref().is_some_and(is_corruption),
        _ => false,
    }
}

/// Whether the index may be whole, but what it needs beside it cannot be written: its log, or what
/// several processes share.
pub fn is_unwritable(error: &Error) -> bool {
    use ErrorCode::{CannotOpen, PermissionDenied, ReadOnly, SystemIoFailure};
    let Error::Index { source, .. } = error else { return false };
    let code = source.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
    code.is_some_and(|code| matches!(code, CannotOpen | PermissionDenied | ReadOnly | SystemIoFailure))
}

/// All statements are ours, so one that does not fit the tables says that the tables are not ours.
fn is_corruption(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as E;
    match error {
        E::SqliteFailure(e, _) => {
            matches!(
                e.code,
                ErrorCode::DatabaseCorrupt
                    | ErrorCode::NotADatabase
                    | ErrorCode::ConstraintViolation
                    | ErrorCode::TypeMismatch
                    | ErrorCode::TooBig
                    | ErrorCode::Unknown
            ) || e.extended_code == ffi::SQLITE_IOERR_SHORT_READ
        }
        E::SqlInputError { .. }
        | E::FromSqlConversionFailure(..)
        | E::IntegralValueOutOfRange(..)
        | E::InvalidColumnType(..)
        | E::InvalidColumnIndex(..)
        | E::QueryReturnedNoRows => true,
        _ => false,
    }
}
