//! How a server is reached over HTTP, as arguments of the commands that serve.

use std::{io::Write as _, net::SocketAddr, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::{Failure, serve::chain};
use crate::{
    executions::Limits,
    server::http::{self, DEFAULT_ADDRESS, Options, StartError, TOKEN_VARIABLE},
};

/// `--http` and what goes with it.
pub(super) fn arguments() -> [Arg; 8] {
    let beside = |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value).requires("http");
    let file = |name| beside(name, "FILE").value_parser(value_parser!(PathBuf));
    [
        Arg::new("http")
            .long("http")
            .value_name("ADDRESS")
            .num_args(0..=1)
            .default_missing_value(DEFAULT_ADDRESS)
            .value_parser(value_parser!(SocketAddr))
            .help(format!("Serve over HTTP at /mcp; without a value at {DEFAULT_ADDRESS}")),
        file("http-tokens").help(format!(
            "Tokens that let clients in, `NAME SECRET [EXPIRY]` a line [otherwise the one of {TOKEN_VARIABLE}]"
        )),
        file("tls-cert").requires("tls-key").help("Certificate with its chain, PEM; needed beyond loopback"),
        file("tls-key").requires("tls-cert").help("Its private key, PEM"),
        beside("http-url", "URL")
            .help("This server's own URL as clients write it: its name, and the audience of tokens"),
        beside("http-origin", "ORIGIN")
            .action(ArgAction::Append)
            .help("A web page's origin that may call, such as https://app.example; may be repeated"),
        beside("http-issuer", "URL")
            .requires("http-jwks")
            .help("An identity provider whose tokens (JWT) let clients in; clients are told of it (RFC 9728)"),
        file("http-jwks").requires("http-issuer").help("The provider's public keys, a JSON Web Key Set"),
    ]
}

/// What they say; `None` without `--http`.
pub(super) fn of(matches: &ArgMatches) -> Result<Option<Options>, Failure> {
    let Some(address) = matches.get_one::<SocketAddr>("http").copied() else { return Ok(None) };
    let file = |name| matches.get_one::<PathBuf>(name).cloned();
    let text = |name| matches.get_one::<String>(name).cloned();
    let token = match std::env::var(TOKEN_VARIABLE) {
        Ok(token) => Some(token),
        Err(std::env::VarError::NotPresent) => None,
        Err(_) => return Err(Failure::usage(format!("{TOKEN_VARIABLE} is no text"))),
    };
    Ok(Some(Options {
        address,
        tokens: file("http-tokens"),
        token,
        tls: file("tls-cert").zip(file("tls-key")),
        url: text("http-url"),
        origins: matches.get_many("http-origin").into_iter().flatten().cloned().collect(),
        issuer: text("http-issuer").zip(file("http-jwks")),
    }))
}

/// Serves until a signal asks for the end.
pub(super) fn run(limits: Limits, options: &Options) -> Result<(), Failure> {
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let ready = |address: SocketAddr| {
        // Whoever read it may have gone.
        let _ = writeln!(std::io::stderr(), "mcptrace: serving MCP at {scheme}://{address}/mcp");
    };
    http::run(limits, options, ready).map_err(|error| match error {
        StartError::Settings(why) => Failure::usage(why),
        other => Failure::failed(chain(&other)),
    })
}
