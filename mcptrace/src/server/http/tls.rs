//! Encryption: the operator's certificate and key, TLS 1.2 and 1.3.

use std::{path::Path, sync::Arc};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::guarded;

/// Reads a certificate with those above it, and its key, which nobody else may read.
pub(super) fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let named = |path: &Path, error: String| format!("{}: {error}", path.display());
    let chain = certificates(certificate).map_err(|error| named(certificate, error))?;
    let text = guarded::private(key).map_err(|error| named(key, error.to_string()))?;
    let key_der = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| named(key, "no private key in PEM: -----BEGIN PRIVATE KEY-----".to_owned()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .map_err(|error| named(certificate, format!("it does not go with its key: {error}")))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = guarded::text(path).map_err(|error| error.to_string())?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("no certificates in PEM: {error}"))?;
    if all.is_empty() { Err("no certificate in PEM: -----BEGIN CERTIFICATE-----".to_owned()) } else { Ok(all) }
}
