//! `pocketfleet admin …`: making administrators.

use std::io;
use std::io::BufRead;
use std::io::Read;
use std::process::ExitCode;

use anyhow::Context;
use anyhow::bail;
use clap::Args;
use clap::Subcommand;
use rand::seq::IndexedRandom;
use serde_json::json;

use crate::cli::client::Control;
use crate::cli::output::Output;

/// Letters of a generated password: none that look alike.
const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
/// Length of a generated password: 24 letters of 56 are 139 bits.
const LENGTH: usize = 24;
/// The shortest password that is accepted from standard input.
const SHORTEST: usize = 10;
/// Most bytes read for a password.
const LONGEST: u64 = 1024;

/// What to do with administrators.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create an administrator, with a generated password unless one is given on standard input.
    Create(Create),
}

/// The new administrator.
#[derive(Debug, Args)]
pub struct Create {
    /// E-mail address to sign in with.
    #[arg(long)]
    email: String,
    /// Read the password from the first line of standard input.
    #[arg(long)]
    password_stdin: bool,
}

/// Runs the command against the running server.
pub async fn run(command: Command, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    let Command::Create(wanted) = command;
    let given = if wanted.password_stdin { Some(read_password(&mut io::stdin().lock())?) } else { None };
    let generated = given.is_none().then(generate);
    let password = given.as_deref().or(generated.as_deref()).unwrap_or_default();
    let body = json!({ "email": wanted.email, "password": password });
    let mut answer = control.call("POST", "/admins", Some(&body)).await?;
    let done = format!("{} is an administrator now", wanted.email);
    let Some(password) = generated else { return output.done(&answer, &done) };
    let text = format!("{done}\npassword: {password}\nit is shown this once and stored nowhere in clear");
    answer["password"] = password.into();
    output.done(&answer, &text)
}

fn generate() -> String {
    let mut random = rand::rng();
    (0..LENGTH).filter_map(|_| LETTERS.choose(&mut random).copied().map(char::from)).collect()
}

fn read_password(from: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    from.take(LONGEST).read_line(&mut line).context("read the password from standard input")?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.chars().count() < SHORTEST {
        bail!("a password needs at least {SHORTEST} characters");
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_passwords_are_long_and_differ() {
        let (one, other) = (generate(), generate());
        assert_eq!(one.len(), LENGTH);
        assert_ne!(one, other);
    }

    #[test]
    fn the_first_line_is_the_password() {
        assert_eq!(read_password(&mut "correct horse\r\nrest".as_bytes()).unwrap(), "correct horse");
        assert!(read_password(&mut "short\n".as_bytes()).is_err());
        assert!(read_password(&mut "".as_bytes()).is_err());
    }
}
