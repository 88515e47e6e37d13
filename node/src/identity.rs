//! The files of a node's data directory.
//!
//! `tls.key`, `node.crt`, `ca.crt` (PEM), `log.key`, `terminal.secret`, `pin.key` (hexadecimal), `identity.json`; all of them mode 0600.
//! `identity.json` is written last: where it exists, the node is joined. Beside them lie `node.db`, `control.sock` and
//! `lock`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::{SigningKey, VerifyingKey};
use feiqian_protocol::chain::{hex, unhex};
use feiqian_protocol::enrol::{Enrolled, Role};
use feiqian_protocol::ids::{CampusId, InstitutionId, NodeId, NodeName};
use feiqian_protocol::pin::PinKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::http::auth::TerminalSecret;
use crate::io::Identity;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// There is an identity in it.
    #[error("{} belongs to a node that has joined already; choose another directory", .0.display())]
    AlreadyJoined(PathBuf),
    /// There is no identity in it.
    #[error("{} holds no identity: this node has not joined yet (feiqian-node join)", .0.display())]
    NotJoined(PathBuf),
    /// Another process works on it.
    #[error("{} is in use by another feiqian-node process", .0.display())]
    InUse(PathBuf),
    /// The file system refused.
    #[error("{}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A data directory.
#[derive(Clone, Debug)]
pub struct DataDir {
    path: PathBuf,
}

/// What a joined node lives by.
pub struct NodeFiles {
    /// What the core needs.
    pub identity: Identity,
    /// The key of its certificate.
    pub tls_key: PrivateKeyDer<'static>,
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// The institution's CA.
    pub ca: CertificateDer<'static>,
    /// What the keys of its terminals are derived from.
    pub terminal_secret: TerminalSecret,
    /// What digests of PINs are made with; absent in a directory of a build that knew no PINs.
    pub pin_key: Option<PinKey>,
}

/// Keys made here. They leave this machine never, but for `pin_key`, of which the centre is told.
pub struct NewKeys {
    /// The TLS key, as PEM of PKCS #8.
    pub tls_key_pem: String,
    /// The seed of the log key.
    pub log_key: [u8; 32],
    /// What the keys of terminals are derived from.
    pub terminal_secret: [u8; 32],
    /// What digests of PINs are made with; told to the centre.
    pub pin_key: PinKey,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    format: u32,
    institution: InstitutionId,
    campus: CampusId,
    node: NodeId,
    name: NodeName,
    role: Role,
    incarnation: u32,
    centre_log_key: String,
}

const IDENTITY_FORMAT: u32 = 1;

impl DataDir {
    /// The directory at this path, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.path.join("node.db")
    }

    /// The local socket.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The CA's certificate, for terminals.
    pub fn ca_file(&self) -> PathBuf {
        self.path.join("ca.crt")
    }

    /// True where the node has joined.
    pub fn is_joined(&self) -> bool {
        self.identity_file().exists()
    }

    /// Makes sure that the directory exists; a new one is open to its owner only.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn create(&self) -> Result<(), DataDirError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(self.at(&self.path))
    }

    /// Keeps other processes from working on this directory, as long as the file is held.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] where one does so already.
    pub fn lock(&self) -> Result<File, DataDirError> {
        let path = self.path.join("lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open.map_err(self.at(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse(self.path.clone())),
            Err(TryLockError::Error(source)) => Err(DataDirError::Io { path, source }),
        }
    }

    /// Reads everything that a joined node lives by.
    ///
    /// # Errors
    /// [`DataDirError`] names the file.
    pub fn load(&self) -> Result<NodeFiles, DataDirError> {
        let identity_file = self.identity_file();
        let text = match fs::read(&identity_file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DataDirError::NotJoined(self.path.clone()));
            }
            read => read.map_err(self.at(&identity_file))?,
        };
        let malformed = |why: String| DataDirError::Malformed { path: identity_file.clone(), why };
        let file: IdentityFile =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        if file.format != IDENTITY_FORMAT {
            return Err(malformed(format!("format {} is not known to this build", file.format)));
        }
        let centre_key = unhex(&file.centre_log_key)
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
            .ok_or_else(|| malformed("centre_log_key is no Ed25519 public key".to_owned()))?;
        Ok(NodeFiles {
            identity: Identity {
                institution: file.institution,
                campus: file.campus,
                node: file.node,
                name: file.name,
                role: file.role,
                incarnation: file.incarnation,
                log_key: SigningKey::from_bytes(&self.secret("log.key")?),
                centre_key: centre_key.into(),
            },
            tls_key: self.pem("tls.key")?,
            certificate: self.pem("node.crt")?,
            ca: self.pem("ca.crt")?,
            terminal_secret: TerminalSecret::new(self.secret("terminal.secret")?),
            pin_key: self.optional_secret("pin.key")?.map(PinKey::new),
        })
    }

    /// Keeps the keys, before anybody is asked to vouch for them.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn store_keys(&self, keys: &NewKeys) -> Result<(), DataDirError> {
        self.write("tls.key", keys.tls_key_pem.as_bytes())?;
        self.write("log.key", format!("{}\n", hex(&keys.log_key)).as_bytes())?;
        self.write("pin.key", format!("{}\n", hex(&keys.pin_key.to_bytes())).as_bytes())?;
        self.write("terminal.secret", format!("{}\n", hex(&keys.terminal_secret)).as_bytes())
    }

    /// Keeps what the centre gave; from then on the node is joined.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn store_enrolled(&self, enrolled: &Enrolled) -> Result<(), DataDirError> {
        self.write("ca.crt", certificate_pem(&enrolled.ca).as_bytes())?;
        self.write("node.crt", certificate_pem(&enrolled.certificate).as_bytes())?;
        let identity = IdentityFile {
            format: IDENTITY_FORMAT,
            institution: enrolled.institution,
            campus: enrolled.campus,
            node: enrolled.node,
            name: enrolled.name.clone(),
            role: enrolled.role,
            incarnation: enrolled.incarnation,
            centre_log_key: hex(&enrolled.centre_log_key),
        };
        let text = serde_json::to_string_pretty(&identity).expect("plain fields always make JSON");
        self.write("identity.json", format!("{text}\n").as_bytes())
    }

    /// Keeps a renewed certificate.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn store_certificate(&self, certificate: &[u8]) -> Result<(), DataDirError> {
        self.write("node.crt", certificate_pem(certificate).as_bytes())
    }

    fn identity_file(&self) -> PathBuf {
        self.path.join("identity.json")
    }

    /// Writes a whole file or none of it: into another one first, which then takes the name.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DataDirError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let write = || -> io::Result<()> {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(self.at(&path))
    }

    fn optional_secret(&self, name: &str) -> Result<Option<[u8; 32]>, DataDirError> {
        if self.path.join(name).exists() { self.secret(name).map(Some) } else { Ok(None) }
    }

    fn secret(&self, name: &str) -> Result<[u8; 32], DataDirError> {
        let path = self.path.join(name);
        let text = fs::read_to_string(&path).map_err(self.at(&path))?;
        unhex(text.trim()).and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| DataDirError::Malformed {
            path,
            why: "64 hexadecimal digits are expected".to_owned(),
        })
    }

    fn pem<T: PemObject>(&self, name: &str) -> Result<T, DataDirError> {
        let path = self.path.join(name);
        let bytes = fs::read(&path).map_err(self.at(&path))?;
        T::from_pem_slice(&bytes).map_err(|error| DataDirError::Malformed { path, why: error.to_string() })
    }

    fn at(&self, path: &Path) -> impl FnOnce(io::Error) -> DataDirError + use<> {
        let path = path.to_owned();
        |source| DataDirError::Io { path, source }
    }
}

/// A certificate as PEM (RFC 7468): base64 in lines of 64 characters, which hold 48 bytes.
fn certificate_pem(certificate: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in certificate.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
                << (8 * (3 - group.len()));
            for digit in 0..4 {
                let index = (bits >> (18 - 6 * digit)) & 63;
                text.push(if digit > group.len() { '=' } else { char::from(DIGITS[index as usize]) });
            }
        }
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn enrolled(name: &str) -> Enrolled {
        Enrolled {
            institution: InstitutionId(1),
            campus: CampusId(2),
            node: NodeId(3),
            name: NodeName::new(name).unwrap(),
            role: Role::Pos,
            incarnation: 1,
            certificate: (0..100).collect::<Vec<u8>>().into(),
            ca: vec![7; 49].into(),
            centre_log_key: SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes(),
        }
    }

    #[test]
    fn files_are_private_complete_and_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::new(temp.path().join("a/b"));
        dir.create().unwrap();
        assert!(matches!(dir.load(), Err(DataDirError::NotJoined(_))));
        let tls_key_pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        let (log_key, terminal_secret, pin_key) = ([4; 32], [5; 32], PinKey::new([6; 32]));
        dir.store_keys(&NewKeys { tls_key_pem, log_key, terminal_secret, pin_key }).unwrap();
        assert!(!dir.is_joined());
        dir.store_enrolled(&enrolled("canteen-red")).unwrap();
        let files = dir.load().unwrap();
        assert_eq!(files.identity.name.as_str(), "canteen-red");
        assert_eq!(files.identity.log_key.to_bytes(), [4; 32]);
        assert_eq!(files.certificate.as_ref(), (0..100).collect::<Vec<u8>>());
        assert_eq!(files.ca.as_ref(), [7; 49]);
        assert_eq!(files.pin_key, Some(PinKey::new([6; 32])));
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
        fs::remove_file(dir.path().join("pin.key")).unwrap();
        assert!(dir.load().unwrap().pin_key.is_none(), "a directory of before");
        fs::write(dir.path().join("log.key"), "short").unwrap();
        let error = dir.load().err().unwrap().to_string();
        assert!(error.ends_with("log.key: 64 hexadecimal digits are expected"), "{error}");
    }

    #[test]
    fn one_process_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::new(temp.path());
        let held = dir.lock().unwrap();
        assert!(matches!(dir.lock(), Err(DataDirError::InUse(_))));
        drop(held);
        dir.lock().unwrap();
    }
}
