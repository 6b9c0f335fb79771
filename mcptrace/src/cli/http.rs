//! How a server is reached over HTTP, as arguments of the command that serves.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::{Failure, serve::chain};
use crate::{
    config::{Config, Http},
    executions::Executions,
    server::http::{self, Options, StartError, TOKEN_VARIABLE},
};

/// `--http` and what goes with it, and the budget of executions.
pub(super) fn arguments() -> [Arg; 9] {
    let beside = |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value).requires("http");
    let file = |name| beside(name, "FILE").value_parser(value_parser!(PathBuf));
    [
        Arg::new("http")
            .long("http")
            .value_name("ADDRESS")
            .num_args(0..=1)
            .value_parser(value_parser!(SocketAddr))
            .help("Serve over HTTP at /mcp [default: http.address, 127.0.0.1:7811]"),
        file("http-tokens").help(format!(
            "Tokens that let clients in, `NAME SECRET [EXPIRY]` a line [default: http.tokens, or the token in {TOKEN_VARIABLE}]"
        )),
        file("tls-cert").requires("tls-key").help("Certificate with its chain, PEM; needed beyond loopback"),
        file("tls-key").requires("tls-cert").help("Its private key, PEM"),
        beside("http-url", "URL").help("This server's own URL as clients write it: its name, and the audience of tokens"),
        beside("http-origin", "ORIGIN")
            .action(ArgAction::Append)
            .help("A web page's origin that may call, such as https://app.example; may be repeated"),
        beside("http-issuer", "URL")
            .requires("http-jwks")
            .help("An identity provider whose tokens (JWT) let clients in; clients are told of it (RFC 9728)"),
        file("http-jwks").requires("http-issuer").help("The provider's public keys, a JSON Web Key Set"),
        Arg::new("execution-budget")
            .long("execution-budget")
            .value_name("PERCENT")
            .value_parser(percent)
            .help("What an execution may cost, in percent of one CPU, before it is detached; 0 for no bound [default: limits.execution_percent]"),
    ]
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse::<f64>().ok().filter(|percent| (0.0..=100_000.0).contains(percent));
    percent.ok_or_else(|| "a number of percent, 0 or more".to_owned())
}

/// Whether it is to serve over HTTP.
pub(super) fn is_asked_for(matches: &ArgMatches) -> bool {
    matches.value_source("http").is_some()
}

/// The configuration with what they say.
pub(super) fn of(matches: &ArgMatches, mut config: Config) -> Config {
    let http = &mut config.http;
    take(&mut http.address, matches, "http");
    take(&mut http.tokens, matches, "http-tokens");
    take(&mut http.certificate, matches, "tls-cert");
    take(&mut http.key, matches, "tls-key");
    take(&mut http.url, matches, "http-url");
    take(&mut http.issuer, matches, "http-issuer");
    take(&mut http.jwks, matches, "http-jwks");
    http.origins.extend(matches.get_many("http-origin").into_iter().flatten().cloned());
    config.with_budget(matches.get_one("execution-budget").copied())
}

fn take<T: Clone + Send + Sync + 'static>(setting: &mut T, matches: &ArgMatches, name: &str) {
    if let Some(given) = matches.get_one::<T>(name) {
        setting.clone_from(given);
    }
}

/// A port that is taken, and how it is to be served there.
pub(super) struct Bound {
    /// How the operator wants it.
    pub(super) options: Options,
    /// Where clients may wait from now on.
    pub(super) listener: TcpListener,
}

impl Bound {
    /// Takes the port, as long as this process may take any.
    pub(super) fn new(settings: Http) -> Result<Self, Failure> {
        let options = options(settings)?;
        let listener = http::bind(&options).map_err(failure)?;
        Ok(Self { options, listener })
    }
}

/// Serves until a signal asks for the end.
pub(super) fn run(executions: Executions, bound: Bound) -> Result<(), Failure> {
    let Bound { options, listener } = bound;
    http::run(executions, &options, listener, ready("mcptrace", &options)).map_err(failure)
}

/// Says where it listens, once it does.
pub(super) fn ready(who: &'static str, options: &Options) -> impl FnOnce(SocketAddr) + Send + use<> {
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    move |address| {
        // Whoever read it may have gone.
        let _ = writeln!(std::io::stderr(), "{who}: serving MCP at {scheme}://{address}/mcp");
    }
}

/// Settings that are not safe are the caller's mistake.
pub(super) fn failure(error: StartError) -> Failure {
    match error {
        StartError::Settings(why) => Failure::usage(why),
        other => Failure::failed(chain(&other)),
    }
}

/// As the server takes them, with the token of the environment.
fn options(settings: Http) -> Result<Options, Failure> {
    let Http { address, tokens, certificate, key, url, origins, issuer, jwks, listen: _ } = settings;
    let given = |path: &Path| !path.as_os_str().is_empty();
    let token = match std::env::var(TOKEN_VARIABLE) {
        Ok(token) => Some(token),
        Err(std::env::VarError::NotPresent) => None,
        Err(_) => return Err(Failure::usage(format!("{TOKEN_VARIABLE} is no text"))),
    };
    Ok(Options {
        address,
        tokens: given(&tokens).then_some(tokens),
        token,
        tls: given(&certificate).then_some((certificate, key)),
        url: (!url.is_empty()).then_some(url),
        origins,
        issuer: (!issuer.is_empty()).then_some((issuer, jwks)),
    })
}
