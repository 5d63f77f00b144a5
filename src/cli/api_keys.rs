//! `pocketfleet api-keys …`: the keys of workers, and everybody's to look at and revoke.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use clap::Subcommand;
use serde_json::Value;
use serde_json::json;
use time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::client::Control;
use crate::cli::output;
use crate::cli::output::Output;

/// What to do with API keys.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a key for a worker. It is printed once.
    Create(Create),
    /// List all keys, newest first.
    List,
    /// Take a key back: it counts no more.
    Revoke(Revoke),
}

/// The new key.
#[derive(Debug, Args)]
pub struct Create {
    /// What to call it.
    #[arg(long)]
    name: String,
    /// What it may do: worker:KIND. May be given several times.
    #[arg(long = "scope", required = true, value_name = "SCOPE")]
    scopes: Vec<String>,
    /// When it ends by itself, from now: 90d, 12h, 30m. Never unless given.
    #[arg(long, value_name = "TIME", value_parser = span)]
    expires: Option<Duration>,
}

/// Which key.
#[derive(Debug, Args)]
pub struct Revoke {
    /// Its id, as `list` shows it.
    #[arg(value_parser = id)]
    id: String,
}

/// An id stands in a path.
fn id(text: &str) -> Result<String, &'static str> {
    let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex { Ok(text.to_ascii_lowercase()) } else { Err("an id is 16 hexadecimal digits") }
}

/// Reads a whole number of days, hours or minutes.
fn span(text: &str) -> Result<Duration, &'static str> {
    const WRONG: &str = "a time is a number and a unit: 90d, 12h, 30m";
    let at = text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at)).ok_or(WRONG)?;
    let (number, unit) = text.split_at(at);
    let number: u32 = number.parse().map_err(|_| WRONG)?;
    match unit {
        "d" => Ok(Duration::days(number.into())),
        "h" => Ok(Duration::hours(number.into())),
        "m" => Ok(Duration::minutes(number.into())),
        _ => Err(WRONG),
    }
}

/// Runs the command against the running server.
pub async fn run(command: Command, control: &Control, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(Create { name, scopes, expires }) => {
            let mut body = json!({ "name": name, "scopes": scopes });
            if let Some(span) = expires {
                let Some(end) = OffsetDateTime::now_utc().checked_add(span) else { bail!("that is too far away") };
                body["expires_at"] = end.format(&Rfc3339)?.into();
            }
            let made = control.call("POST", "/api-keys", Some(&body)).await?;
            let key = made["key"].as_str().unwrap_or_default();
            output.done(&made, &format!("{key}\nit is shown this once and stored nowhere in clear"))
        }
        Command::List => {
            let found = control.call("GET", "/api-keys", None).await?;
            let rows: Vec<_> = found["items"].as_array().into_iter().flatten().map(row).collect();
            let titles = ["ID", "NAME", "OWNER", "SCOPES", "STATE", "EXPIRES", "LAST USED"];
            output.done(&found, &if rows.is_empty() { "no keys".to_owned() } else { output::table(titles, &rows) })
        }
        Command::Revoke(Revoke { id }) => {
            let done = control.call("DELETE", &format!("/api-keys/{id}"), None).await?;
            output.done(&done, &format!("{id} counts no more"))
        }
    }
}

fn row(key: &Value) -> [String; 7] {
    let text = |name: &str| key[name].as_str().unwrap_or("-").to_owned();
    let scopes: Vec<_> = key["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let owner = key["owner"].as_str().unwrap_or("fleet").to_owned();
    [text("id"), text("name"), owner, scopes.join(" "), text("state"), text("expires_at"), text("last_used_at")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_a_number_and_a_unit() {
        assert_eq!(span("90d"), Ok(Duration::days(90)));
        assert_eq!(span("12h"), Ok(Duration::hours(12)));
        assert_eq!(span("1m"), Ok(Duration::minutes(1)));
        for bad in ["", "d", "90", "-1d", "1w", "1.5h", "9ü", "99999999999d"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_cannot_leave_its_place_in_a_path() {
        assert_eq!(id("9F86d081884c7d65").as_deref(), Ok("9f86d081884c7d65"));
        for bad in ["", "../status", "9f86", "9f86d081884c7d6/"] {
            assert!(id(bad).is_err(), "{bad}");
        }
    }
}
