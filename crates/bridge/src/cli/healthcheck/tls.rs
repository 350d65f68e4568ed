//! HTTPS with one bridge: the one that has the configured certificate, whatever names stand in it.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
};

use rustls::{
    ClientConnection, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

use crate::pinned::Pinned;

/// A connection of either kind.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Speaks TLS over `stream` with a server that has the first certificate of this file. The names in it
/// are not checked: they are those that browsers use.
pub fn over(stream: TcpStream, certificate: &Path) -> io::Result<Box<dyn Stream>> {
    let known = CertificateDer::from_pem_file(certificate).map_err(io::Error::other)?;
    let other =
        "another program listens there: its certificate is not the one in MCPO_SSL_CERTFILE";
    let pinned = Pinned::new(move |shown: &CertificateDer<'_>| *shown == known, other);
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::new(pinned.client()), name);
    let connection = connection.map_err(io::Error::other)?;
    Ok(Box::new(StreamOwned::new(connection, stream)))
}
