//! `mcpo-bridge healthcheck`: for containers, whose images then need no other HTTP client.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Args;
use reqwest::{Client, header::ACCEPT, redirect::Policy};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;
use url::Url;

use super::{
    Failure, SettingsArgs,
    local::block_on,
    output::{print, root_cause},
};
use crate::{config::Listen, pinned::Pinned};

/// Text after the options in `--help`.
pub const HELP: &str = "\
Requests /health at the address in the settings. Exit code 0 if the response is 200 (also when the status is \
degraded: one failing server is no reason to restart the others), 1 otherwise.

Examples:
  HEALTHCHECK CMD [\"mcpo-bridge\", \"healthcheck\"]
  mcpo-bridge healthcheck --url http://127.0.0.1:8080/health";

/// Maximum number of bytes of the response: more than any health report.
const LIMIT: usize = 4 * 1024 * 1024;

/// The arguments of `healthcheck`.
#[derive(Args)]
pub struct HealthcheckArgs {
    /// URL to request instead; without a path, /health is used
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Overall timeout
    #[arg(
        long,
        alias = "patience",
        value_name = "SECONDS",
        default_value_t = 5.0
    )]
    max_time: f64,
}

/// The requested URL.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    url: Url,
    /// The certificate of a bridge that serves HTTPS itself.
    certificate: Option<PathBuf>,
}

/// All failures have exit code 1: Docker reserves 2.
pub fn run(args: &HealthcheckArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let target = match &args.url {
        Some(url) => Target::parse(url)?,
        None => Target::from_listen(&settings.resolve().map_err(Failure::failed)?.listen)?,
    };
    let timeout = Duration::try_from_secs_f64(args.max_time)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| {
            Failure::failed("--max-time: expected a number of seconds greater than 0")
        })?;
    let url = &target.url;
    let response = block_on(async {
        target.get(timeout).await.map_err(|error| {
            Failure::failed(format!(
                "no response from {url}: {error}; check that the bridge is running and listens there \
                 (MCPO_HOST, MCPO_PORT)"
            ))
        })
    });
    let (status, body) = response?;
    let health: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status != 200 {
        let why = &health["reasons"];
        return Err(Failure::failed(format!("{url} returned {status}: {why}")));
    }
    let status = health["status"].as_str().unwrap_or("ok");
    print(&format!("{status}\n"))
}

impl Target {
    /// A bridge that listens on all addresses also listens on loopback.
    fn from_listen(listen: &Listen) -> Result<Self, Failure> {
        if listen.port == 0 {
            return Err(Failure::failed(
                "with port 0 the port is chosen by the system; give the actual one with --url or MCPO_PORT",
            ));
        }
        let host = match listen.host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
            Ok(IpAddr::V6(address)) if address.is_unspecified() => "[::1]".to_owned(),
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => listen.host.clone(),
        };
        let certificate = listen.tls.as_ref().map(|tls| tls.certificate.clone());
        let scheme = certificate.as_ref().map_or("http", |_| "https");
        let (port, prefix) = (listen.port, &listen.path_prefix);
        let url = Url::parse(&format!("{scheme}://{host}:{port}{prefix}/health"));
        let url = url.map_err(Failure::failed)?;
        Ok(Self { url, certificate })
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let url = Url::parse(text).ok().filter(|url| url.scheme() == "http");
        let mut url = url.ok_or_else(|| {
            Failure::failed(
                "--url: expected an http URL, such as http://127.0.0.1:8080/health (for https omit it: \
                 MCPO_SSL_CERTFILE is used)",
            )
        })?;
        if url.path() == "/" {
            url.set_path("/health");
        }
        let certificate = None;
        Ok(Self { url, certificate })
    }

    /// Returns the status and the body. With HTTPS, accepts the configured certificate regardless of the host
    /// names in it: those are the names that browsers use.
    async fn get(&self, timeout: Duration) -> Result<(u16, Vec<u8>), String> {
        let certificate = self.certificate.as_ref().map(CertificateDer::from_pem_file);
        let known = certificate.transpose().map_err(|error| error.to_string())?;
        let other =
            "another program listens there: its certificate is not the one in MCPO_SSL_CERTFILE";
        let pinned = Pinned::new(
            move |shown: &CertificateDer<'_>| known.as_ref() == Some(shown),
            other,
        );
        let client = Client::builder()
            .tls_backend_preconfigured(pinned.client())
            .no_proxy()
            .redirect(Policy::none())
            .user_agent("mcpo-bridge-healthcheck")
            .timeout(timeout)
            .build();
        let failed = |error: reqwest::Error| reason(&error);
        let request = client.map_err(failed)?.get(self.url.clone());
        let request = request.header(ACCEPT, "application/json");
        let mut response = request.send().await.map_err(failed)?;
        let mut body = Vec::new();
        while body.len() < LIMIT
            && let Some(part) = response.chunk().await.map_err(failed)?
        {
            body.extend_from_slice(&part);
        }
        Ok((response.status().as_u16(), body))
    }
}

fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    if !error.is_connect() {
        return "the response is not HTTP: another program listens there".to_owned();
    }
    root_cause(error).to_string()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_url_needs_no_path_and_no_port() {
        let target = |url: &str| Target::parse(url).map(|target| target.url.to_string());
        assert_eq!(target("http://h").unwrap(), "http://h/health");
        assert_eq!(target("http://[::1]:9/x").unwrap(), "http://[::1]:9/x");
        for bad in ["https://h/health", "h:8080", "", "file:///health"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn it_requests_the_address_in_the_settings() {
        let asked = |flags: &[&str]| {
            #[derive(clap::Parser)]
            struct Given {
                #[command(flatten)]
                settings: SettingsArgs,
            }
            let given = ["x", "--allow-unauthenticated"].iter().chain(flags);
            let given: Given = clap::Parser::parse_from(given);
            let settings = given.settings.resolve().unwrap();
            Target::from_listen(&settings.listen).map(|target| target.url.to_string())
        };
        let url = asked(&["--host", "0.0.0.0", "--port", "9", "--path-prefix", "/x"]);
        assert_eq!(url.unwrap(), "http://127.0.0.1:9/x/health");
        let url = asked(&["--host", "::", "--port", "9"]).unwrap();
        assert_eq!(url, "http://[::1]:9/health");
        let url = asked(&["--host", "bridge.internal", "--port", "9"]);
        assert_eq!(url.unwrap(), "http://bridge.internal:9/health");
        assert!(asked(&["--port", "0"]).is_err());
        let url = asked(&["--port", "9", "-t", "c.pem", "-K", "k.pem"]);
        assert_eq!(url.unwrap(), "https://127.0.0.1:9/health");
    }

    /// A server that accepts one connection and sends this response.
    fn answering(answer: &'static [u8]) -> Target {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
            if answer.is_empty() {
                // Wait until the client gives up.
                let _ = stream.read(&mut [0; 1]);
            }
        });
        Target::parse(&format!("http://127.0.0.1:{port}")).unwrap()
    }

    #[tokio::test]
    async fn a_response_that_is_late_is_a_failure() {
        let error = answering(b"").get(Duration::from_millis(50)).await;
        assert_eq!(error.unwrap_err(), "timed out");
    }

    #[tokio::test]
    async fn only_http_is_a_response() {
        let get = async |answer| answering(answer).get(Duration::from_secs(30)).await;
        let answer = get(b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\n{}").await;
        assert_eq!(answer.unwrap(), (503, b"{}".to_vec()));
        for bad in [
            &b"SSH-2.0-x\r\n\r\n"[..],
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1\r\n\r\n",
        ] {
            let error = get(bad).await.unwrap_err();
            assert!(error.starts_with("the response is not HTTP"), "{error}");
        }
    }
}
