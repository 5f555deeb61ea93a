//! TLS for the way to QStash: rustls with ring, and Mozilla's roots compiled in, so that the
//! program needs no file of the machine it runs on (an empty container image has none). A
//! proxy that opens TLS, or a server of one's own, has a root of its own: see [`ExtraRoots`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};

/// Certificates that are trusted besides Mozilla's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtraRoots(Vec<CertificateDer<'static>>);

/// Why a file holds no certificates that could be trusted.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// It cannot be read, or is no PEM.
    #[error("cannot read certificates from {path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: pem::Error,
    },
    /// There is no certificate in it.
    #[error(
        "{path} holds no certificate: write one or more into it, each between \
         -----BEGIN CERTIFICATE----- and -----END CERTIFICATE-----"
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// What it holds is no X.509 certificate.
    #[error("certificate number {number} in {path} cannot be used: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which one, from 1.
        number: usize,
        /// The cause.
        why: rustls::Error,
    },
}

impl ExtraRoots {
    /// Reads all certificates of a PEM file; anything else in it is passed over.
    pub fn read(path: &Path) -> Result<Self, RootsError> {
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|why| RootsError::Unreadable {
                path: path.to_owned(),
                why,
            })?;
        if certificates.is_empty() {
            return Err(RootsError::Empty {
                path: path.to_owned(),
            });
        }
        let mut trial = RootCertStore::empty();
        for (at, certificate) in certificates.iter().enumerate() {
            trial
                .add(certificate.clone())
                .map_err(|why| RootsError::Malformed {
                    path: path.to_owned(),
                    number: at + 1,
                    why,
                })?;
        }
        Ok(Self(certificates))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// TLS 1.2 and 1.3, with HTTP/2 where the server offers it.
pub(crate) fn client_config(extra: &ExtraRoots) -> ClientConfig {
    let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    roots.add_parsable_certificates(extra.0.iter().cloned()); // each was tried when it was read
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A configuration that reqwest is given has to say so itself.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

#[cfg(test)]
pub(super) mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    pub(in crate::qstash) fn pem(certificate: &CertificateDer<'_>) -> String {
        let text = STANDARD.encode(certificate);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    fn certificate() -> String {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        pem(signed.cert.der())
    }

    #[test]
    fn all_certificates_of_a_file_are_taken_whatever_stands_between_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("# ours\n{}\n# theirs\n{}", certificate(), certificate());
        std::fs::write(&file, text).unwrap();
        assert_eq!(ExtraRoots::read(file.path()).unwrap().len(), 2);
    }

    #[test]
    fn a_file_without_usable_certificates_is_told_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let name = file.path().display().to_string();
        let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (text, told) in [
            ("", "holds no certificate"),
            ("not PEM", "holds no certificate"),
            (no_certificate, "certificate number 1"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "cannot read"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = ExtraRoots::read(file.path()).unwrap_err().to_string();
            assert!(error.contains(told) && error.contains(&name), "{error}");
        }
        let missing = ExtraRoots::read(Path::new("/nowhere/ca.pem")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/ca.pem"), "{missing}");
    }
}
