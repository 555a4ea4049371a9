//! The ledger: every certificate that was ever signed, in SQLite, before it leaves.
//!
//! WAL with `synchronous=FULL`: a committed row survives a crash. Rows of certificates and audit
//! entries can be added, never changed or taken away; audit entries are hash-chained (C8).

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior, params,
};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use zeugma_core::identity::TrustDomain;

/// How long one process waits for another's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// What can go wrong with the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// SQLite refused; a full disk is reported here.
    #[error("the ledger {} cannot {what}", .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The file was written by a newer program.
    #[error("the ledger {} is of version {found}, this program knows {known}; use the newer `zeugma` that wrote it", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// R8: this issuer has used this serial before.
    #[error("issuer {issuer} has used serial {serial} before; nothing was issued, try again (R8)")]
    SerialReused {
        /// The key id of the issuer.
        issuer: String,
        /// The serial.
        serial: String,
    },
    /// The trust domain has an issuer already.
    #[error("the trust domain `{0}` has an issuer already")]
    DomainTaken(TrustDomain),
    /// The file is not whole.
    #[error("the ledger {} is damaged ({found}); restore it from a backup", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        found: String,
    },
    /// C8: an audit row does not follow from the one before.
    #[error(
        "audit row {0} does not follow from the one before it; the ledger was changed by hand (C8)"
    )]
    AuditBroken(i64),
}

impl LedgerError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "ZG0222",
            Self::Newer { .. } => "ZG0225",
            Self::SerialReused { .. } => "ZG0226",
            Self::DomainTaken(_) => "ZG0212",
            Self::Damaged { .. } | Self::AuditBroken(_) => "ZG0224",
        }
    }
}

/// Which of our certificates a row records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Root,
    Cross,
    Anchor,
    Leaf,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Cross => "cross",
            Self::Anchor => "anchor",
            Self::Leaf => "leaf",
        }
    }
}

/// A certificate about to be recorded.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    /// The key id of who signed it.
    pub(crate) issuer: &'a str,
    pub(crate) serial: &'a str,
    /// The SPIFFE ID, or the trust domain's; empty for the root.
    pub(crate) spiffe_id: &'a str,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    pub(crate) der: &'a [u8],
}

/// An issuer as the ledger knows it.
#[derive(Debug, Clone)]
pub(crate) struct IssuerRow {
    pub(crate) key_id: String,
    pub(crate) key_file: String,
    pub(crate) cross: CertificateDer<'static>,
    pub(crate) anchor: CertificateDer<'static>,
}

/// The root as the ledger knows it.
#[derive(Debug, Clone)]
pub(crate) struct RootRow {
    pub(crate) key_id: String,
    pub(crate) certificate: CertificateDer<'static>,
}

/// The open ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    connection: Connection,
    path: PathBuf,
}

// One entry per version, in order; `user_version` counts those applied. Entries are never edited.
const VERSION: u32 = 1;
const MIGRATIONS: [&str; 1] = ["
CREATE TABLE certificates (
    id         INTEGER PRIMARY KEY,
    kind       TEXT NOT NULL CHECK (kind IN ('root', 'cross', 'anchor', 'leaf')),
    issuer     TEXT NOT NULL,
    serial     TEXT NOT NULL CHECK (length(serial) BETWEEN 2 AND 40),
    spiffe_id  TEXT NOT NULL,
    not_before INTEGER NOT NULL,
    not_after  INTEGER NOT NULL CHECK (not_after > not_before),
    issued_at  INTEGER NOT NULL,
    sha256     TEXT NOT NULL UNIQUE,
    der        BLOB NOT NULL,
    UNIQUE (issuer, serial)
) STRICT;
CREATE INDEX certificates_by_id ON certificates (spiffe_id, not_after);
CREATE INDEX certificates_by_end ON certificates (not_after);
CREATE TABLE issuers (
    key_id       TEXT PRIMARY KEY,
    trust_domain TEXT NOT NULL,
    key_file     TEXT NOT NULL UNIQUE,
    state        TEXT NOT NULL CHECK (state IN ('prepared', 'published', 'active', 'draining', 'retired')),
    cross_id     INTEGER NOT NULL REFERENCES certificates (id),
    anchor_id    INTEGER NOT NULL REFERENCES certificates (id)
) STRICT;
CREATE UNIQUE INDEX one_active_issuer ON issuers (trust_domain) WHERE state = 'active';
CREATE TABLE bundles (
    trust_domain TEXT PRIMARY KEY,
    sequence     INTEGER NOT NULL CHECK (sequence > 0),
    content      TEXT NOT NULL
) STRICT;
CREATE TABLE audit (
    id       INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    action   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    detail   TEXT NOT NULL,
    previous TEXT NOT NULL UNIQUE,
    hash     TEXT NOT NULL UNIQUE
) STRICT;
CREATE TRIGGER certificates_stay BEFORE DELETE ON certificates
    BEGIN SELECT RAISE(ABORT, 'certificates are never deleted'); END;
CREATE TRIGGER certificates_fixed BEFORE UPDATE ON certificates
    BEGIN SELECT RAISE(ABORT, 'certificates are never changed'); END;
CREATE TRIGGER audit_stays BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'audit rows are never deleted'); END;
CREATE TRIGGER audit_fixed BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'audit rows are never changed'); END;
CREATE TRIGGER bundle_sequence_grows BEFORE UPDATE ON bundles WHEN NEW.sequence <= OLD.sequence
    BEGIN SELECT RAISE(ABORT, 'a bundle sequence only grows'); END;
"];

impl Ledger {
    /// Opens the ledger, or makes it.
    pub(crate) fn create(path: &Path) -> Result<Self, LedgerError> {
        Self::open_with(path, OpenFlags::SQLITE_OPEN_CREATE)
    }

    /// Opens a ledger that is there.
    pub(crate) fn open(path: &Path) -> Result<Self, LedgerError> {
        Self::open_with(path, OpenFlags::empty())
    }

    fn open_with(path: &Path, flags: OpenFlags) -> Result<Self, LedgerError> {
        let flags = flags | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let prepare = || {
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            Ok(connection)
        };
        let connection = prepare().map_err(|source| LedgerError::Sqlite {
            path: path.to_owned(),
            what: "be opened",
            source,
        })?;
        let mut ledger = Self {
            connection,
            path: path.to_owned(),
        };
        ledger.migrate()?;
        Ok(ledger)
    }

    fn migrate(&mut self) -> Result<(), LedgerError> {
        let newer = self.transact("be migrated", |tx| {
            let found: u32 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
            for (version, step) in (1..).zip(MIGRATIONS) {
                if version > found {
                    tx.execute_batch(step)?;
                    tx.pragma_update(None, "user_version", version)?;
                }
            }
            Ok((found > VERSION).then_some(found))
        })?;
        match newer {
            Some(found) => Err(LedgerError::Newer {
                path: self.path.clone(),
                found,
                known: VERSION,
            }),
            None => Ok(()),
        }
    }

    /// The root, once `init` is done.
    pub(crate) fn root(&self) -> Result<Option<RootRow>, LedgerError> {
        self.read(|c| {
            c.query_row(
                "SELECT issuer, der FROM certificates WHERE kind = 'root' ORDER BY id DESC LIMIT 1",
                [],
                |row| {
                    Ok(RootRow {
                        key_id: row.get(0)?,
                        certificate: certificate(row.get(1)?),
                    })
                },
            )
            .optional()
        })
    }

    /// The active issuer of a trust domain.
    pub(crate) fn issuer(&self, domain: &TrustDomain) -> Result<Option<IssuerRow>, LedgerError> {
        self.read(|c| {
            c.query_row(
                "SELECT i.key_id, i.key_file, x.der, a.der FROM issuers i
                 JOIN certificates x ON x.id = i.cross_id
                 JOIN certificates a ON a.id = i.anchor_id
                 WHERE i.trust_domain = ?1 AND i.state = 'active'",
                [domain.as_str()],
                |row| {
                    Ok(IssuerRow {
                        key_id: row.get(0)?,
                        key_file: row.get(1)?,
                        cross: certificate(row.get(2)?),
                        anchor: certificate(row.get(3)?),
                    })
                },
            )
            .optional()
        })
    }

    /// The anchors a trust domain's bundle holds: those of every issuer that is not retired.
    pub(crate) fn anchors(
        &self,
        domain: &TrustDomain,
    ) -> Result<Vec<CertificateDer<'static>>, LedgerError> {
        self.read(|c| {
            c.prepare(
                "SELECT a.der FROM issuers i JOIN certificates a ON a.id = i.anchor_id
                 WHERE i.trust_domain = ?1 AND i.state IN ('published', 'active', 'draining')
                 ORDER BY a.id",
            )?
            .query_map([domain.as_str()], |row| Ok(certificate(row.get(0)?)))?
            .collect()
        })
    }

    /// The trust domains with an issuer, by name.
    pub(crate) fn trust_domains(&self) -> Result<Vec<String>, LedgerError> {
        self.read(|c| {
            c.prepare("SELECT DISTINCT trust_domain FROM issuers ORDER BY trust_domain")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
    }

    /// Whether this very certificate is a leaf of ours.
    pub(crate) fn has_leaf(&self, der: &[u8]) -> Result<bool, LedgerError> {
        let sha256 = crate::files::hex(&Sha256::digest(der));
        self.read(|c| {
            c.query_row(
                "SELECT EXISTS (SELECT 1 FROM certificates WHERE sha256 = ?1 AND kind = 'leaf')",
                [sha256],
                |row| row.get(0),
            )
        })
    }

    /// Records the root.
    pub(crate) fn add_root(&mut self, root: &Record<'_>, at: i64) -> Result<(), LedgerError> {
        self.record(root, at)
    }

    /// Records one certificate and its audit row; durable when this returns (C2).
    pub(crate) fn record(&mut self, record: &Record<'_>, at: i64) -> Result<(), LedgerError> {
        self.transact("record a certificate", |tx| {
            insert(tx, record, at)?;
            Ok(())
        })
        .map_err(|error| serial_reused(error, record))
    }

    /// Records an issuer and both its certificates, or nothing.
    pub(crate) fn add_issuer(
        &mut self,
        domain: &TrustDomain,
        key_file: &str,
        [cross, anchor]: [&Record<'_>; 2],
        at: i64,
    ) -> Result<(), LedgerError> {
        if self.issuer(domain)?.is_some() {
            return Err(LedgerError::DomainTaken(domain.clone()));
        }
        self.transact("record an issuer", |tx| {
            let cross_id = insert(tx, cross, at)?;
            let anchor_id = insert(tx, anchor, at)?;
            tx.execute(
                "INSERT INTO issuers (key_id, trust_domain, key_file, state, cross_id, anchor_id)
                 VALUES (?1, ?2, ?3, 'active', ?4, ?5)",
                params![
                    anchor.issuer,
                    domain.as_str(),
                    key_file,
                    cross_id,
                    anchor_id
                ],
            )?;
            audit(tx, at, "add-issuer", domain.as_str(), anchor.issuer)
        })
    }

    /// The sequence number of a bundle with this content: the last one's if the content is the
    /// same, else the next (B2).
    pub(crate) fn bundle_sequence(
        &mut self,
        domain: &TrustDomain,
        content: &str,
        at: i64,
    ) -> Result<i64, LedgerError> {
        let domain = domain.as_str();
        self.transact("number a bundle", |tx| {
            let last: Option<(i64, String)> = tx
                .query_row(
                    "SELECT sequence, content FROM bundles WHERE trust_domain = ?1",
                    [domain],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .optional()?;
            let next = match last {
                Some((sequence, same)) if same == content => return Ok(sequence),
                Some((sequence, _)) => sequence + 1,
                None => 1,
            };
            tx.execute(
                "INSERT INTO bundles (trust_domain, sequence, content) VALUES (?1, ?2, ?3)
                 ON CONFLICT (trust_domain) DO UPDATE SET sequence = ?2, content = ?3",
                params![domain, next, content],
            )?;
            audit(tx, at, "publish-bundle", domain, &next.to_string())?;
            Ok(next)
        })
    }

    /// Every certificate, in the order it was recorded.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, LedgerError> {
        self.read(|c| {
            c.prepare("SELECT der FROM certificates ORDER BY id")?
                .query_map([], |row| Ok(certificate(row.get(0)?)))?
                .collect()
        })
    }

    /// Checks that the file is whole and that every audit row follows from the one before (C8);
    /// gives the number of audit rows.
    pub(crate) fn verify(&self) -> Result<u64, LedgerError> {
        let found: String =
            self.read(|c| c.query_row("PRAGMA integrity_check", [], |row| row.get(0)))?;
        if found != "ok" {
            return Err(LedgerError::Damaged {
                path: self.path.clone(),
                found,
            });
        }
        let rows: Vec<AuditRow> = self.read(|c| {
            c.prepare(
                "SELECT id, at, action, subject, detail, previous, hash FROM audit ORDER BY id",
            )?
            .query_map([], |row| {
                Ok(AuditRow {
                    id: row.get(0)?,
                    at: row.get(1)?,
                    action: row.get(2)?,
                    subject: row.get(3)?,
                    detail: row.get(4)?,
                    previous: row.get(5)?,
                    hash: row.get(6)?,
                })
            })?
            .collect()
        })?;
        let mut previous = String::new();
        let mut count = 0;
        for row in rows {
            let hash = audit_hash(&previous, row.at, &row.action, &row.subject, &row.detail);
            if row.previous != previous || row.hash != hash {
                return Err(LedgerError::AuditBroken(row.id));
            }
            previous = hash;
            count += 1;
        }
        Ok(count)
    }

    fn read<T>(
        &self,
        f: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        f(&self.connection).map_err(|source| self.failed("be read", source))
    }

    fn transact<T>(
        &mut self,
        what: &'static str,
        f: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        // Immediate: two processes that both read before they write would otherwise fail instead
        // of waiting for each other.
        let outcome = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .and_then(|tx| {
                let value = f(&tx)?;
                tx.commit()?;
                Ok(value)
            });
        outcome.map_err(|source| self.failed(what, source))
    }

    fn failed(&self, what: &'static str, source: rusqlite::Error) -> LedgerError {
        LedgerError::Sqlite {
            path: self.path.clone(),
            what,
            source,
        }
    }
}

struct AuditRow {
    id: i64,
    at: i64,
    action: String,
    subject: String,
    detail: String,
    previous: String,
    hash: String,
}

fn certificate(der: Vec<u8>) -> CertificateDer<'static> {
    CertificateDer::from(der)
}

fn insert(tx: &Transaction<'_>, record: &Record<'_>, at: i64) -> rusqlite::Result<i64> {
    let sha256 = crate::files::hex(&Sha256::digest(record.der));
    tx.execute(
        "INSERT INTO certificates
         (kind, issuer, serial, spiffe_id, not_before, not_after, issued_at, sha256, der)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            record.kind.as_str(),
            record.issuer,
            record.serial,
            record.spiffe_id,
            record.not_before,
            record.not_after,
            at,
            sha256,
            record.der
        ],
    )?;
    let id = tx.last_insert_rowid();
    let action = format!("issue-{}", record.kind.as_str());
    audit(tx, at, &action, record.spiffe_id, &sha256)?;
    Ok(id)
}

fn audit(
    tx: &Transaction<'_>,
    at: i64,
    action: &str,
    subject: &str,
    detail: &str,
) -> rusqlite::Result<()> {
    let previous: Option<String> = tx
        .query_row(
            "SELECT hash FROM audit ORDER BY id DESC LIMIT 1",
            [],
            |row| row.get(0),
        )
        .optional()?;
    let previous = previous.unwrap_or_default();
    let hash = audit_hash(&previous, at, action, subject, detail);
    tx.execute(
        "INSERT INTO audit (at, action, subject, detail, previous, hash)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![at, action, subject, detail, previous, hash],
    )?;
    Ok(())
}

/// Every field with its length before it, so that no two rows hash the same text.
fn audit_hash(previous: &str, at: i64, action: &str, subject: &str, detail: &str) -> String {
    let mut hasher = Sha256::new();
    for field in [previous, &at.to_string(), action, subject, detail] {
        hasher.update(field.len().to_string());
        hasher.update(":");
        hasher.update(field);
    }
    crate::files::hex(&hasher.finalize())
}

fn serial_reused(error: LedgerError, record: &Record<'_>) -> LedgerError {
    if let LedgerError::Sqlite {
        source: rusqlite::Error::SqliteFailure(code, Some(text)),
        ..
    } = &error
        && code.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE
        && text.contains("certificates.serial")
    {
        return LedgerError::SerialReused {
            issuer: record.issuer.to_owned(),
            serial: record.serial.to_owned(),
        };
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record<'a>(serial: &'a str, der: &'a [u8]) -> Record<'a> {
        Record {
            kind: Kind::Leaf,
            issuer: "aa",
            serial,
            spiffe_id: "spiffe://east.example/a",
            not_before: 1,
            not_after: 2,
            der,
        }
    }

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(&folder.path().join("ca.db")).unwrap();
        (folder, ledger)
    }

    #[test]
    fn r8_an_issuer_never_records_a_serial_twice() {
        let (_folder, mut ledger) = ledger();
        ledger.record(&record("0a", b"one"), 1).unwrap();
        let error = ledger.record(&record("0a", b"two"), 2).unwrap_err();
        assert!(matches!(error, LedgerError::SerialReused { .. }), "{error}");
        assert_eq!(error.code(), "ZG0226");
        let other = Record {
            issuer: "bb",
            ..record("0a", b"three")
        };
        ledger.record(&other, 3).unwrap();
    }

    #[test]
    fn c2_the_ledger_is_durable_by_its_settings() {
        let (_folder, ledger) = ledger();
        let pragma = |name: &str| -> rusqlite::types::Value {
            ledger
                .connection
                .pragma_query_value(None, name, |row| row.get(0))
                .unwrap()
        };
        assert_eq!(pragma("journal_mode"), "wal".to_owned().into());
        // https://sqlite.org/pragma.html#pragma_synchronous: 2 is FULL.
        assert_eq!(pragma("synchronous"), 2.into());
        assert_eq!(pragma("user_version"), 1.into());
    }

    #[test]
    fn a_newer_ledger_is_refused() {
        let (folder, ledger) = ledger();
        ledger
            .connection
            .pragma_update(None, "user_version", 99)
            .unwrap();
        drop(ledger);
        let error = Ledger::open(&folder.path().join("ca.db")).unwrap_err();
        assert!(
            matches!(error, LedgerError::Newer { found: 99, .. }) && error.code() == "ZG0225",
            "{error}"
        );
    }

    #[test]
    fn rows_are_never_changed_or_deleted() {
        let (_folder, mut ledger) = ledger();
        ledger.record(&record("0a", b"one"), 1).unwrap();
        for statement in [
            "DELETE FROM certificates",
            "UPDATE certificates SET serial = '0b'",
            "DELETE FROM audit",
            "UPDATE audit SET at = 0",
        ] {
            assert!(
                ledger.connection.execute(statement, []).is_err(),
                "{statement}"
            );
        }
    }

    #[test]
    fn c8_a_changed_audit_row_breaks_the_chain() {
        let (_folder, mut ledger) = ledger();
        for serial in ["0a", "0b", "0c"] {
            ledger
                .record(&record(serial, serial.as_bytes()), 1)
                .unwrap();
        }
        assert_eq!(ledger.verify().unwrap(), 3);
        ledger
            .connection
            .execute_batch("DROP TRIGGER audit_fixed; UPDATE audit SET subject = 'x' WHERE id = 2")
            .unwrap();
        let broken = ledger.verify().unwrap_err();
        assert!(matches!(broken, LedgerError::AuditBroken(2)));
        assert_eq!(broken.code(), "ZG0224");
    }

    #[test]
    fn b2_a_bundle_sequence_grows_exactly_when_the_content_changes() {
        let (_folder, mut ledger) = ledger();
        let domain = TrustDomain::parse("east.example").unwrap();
        let seed = std::env::var("ZEUGMA_SEED")
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or(7_u64);
        let mut state = seed;
        let mut last = (0, String::new());
        for at in 0..500 {
            // Knuth's MMIX constants; three contents, so that repeats and returns both happen.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let content = ((state >> 33) % 3).to_string();
            let sequence = ledger.bundle_sequence(&domain, &content, at).unwrap();
            let expected = if content == last.1 {
                last.0
            } else {
                last.0 + 1
            };
            assert_eq!(sequence, expected, "seed {seed}, step {at}");
            last = (sequence, content);
        }
        assert!(
            ledger
                .connection
                .execute("UPDATE bundles SET sequence = sequence - 1", [])
                .is_err()
        );
    }

    #[test]
    fn c6_two_processes_share_one_ledger() {
        let (folder, ledger) = ledger();
        drop(ledger);
        let path = folder.path().join("ca.db");
        std::thread::scope(|scope| {
            for issuer in ["aa", "bb"] {
                let path = &path;
                scope.spawn(move || {
                    let mut ledger = Ledger::open(path).unwrap();
                    for number in 0..50 {
                        let serial = format!("{number:02x}");
                        let der = format!("{issuer}{serial}");
                        let record = Record {
                            issuer,
                            ..record(&serial, der.as_bytes())
                        };
                        ledger.record(&record, number).unwrap();
                    }
                });
            }
        });
        assert_eq!(Ledger::open(&path).unwrap().verify().unwrap(), 100);
    }
}
