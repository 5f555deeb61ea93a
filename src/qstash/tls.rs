//! TLS for the way to QStash: rustls with ring, and Mozilla's roots compiled in, so that the
//! program needs no file of the machine it runs on (an empty container image has none).

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

pub(crate) fn client_config() -> ClientConfig {
    let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
