//! A mail server that keeps what it is given: enough SMTP for `PocketBase`'s client, on loopback.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;

use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

use super::eventually;

/// A mail as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Mail {
    pub to: String,
    /// Headers and body, quoted-printable undone.
    pub text: String,
}

impl Mail {
    /// The token of the link in it.
    pub(crate) fn token(&self) -> String {
        let (_, rest) = self.text.split_once("token=").unwrap_or_else(|| panic!("no token in {}", self.text));
        rest.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')).collect()
    }

    /// The address of the link in it.
    pub(crate) fn link(&self) -> String {
        let (_, rest) =
            self.text.split_once("class=\"btn\" href=\"").unwrap_or_else(|| panic!("no link: {}", self.text));
        rest.split('"').next().unwrap().to_owned()
    }

    /// The one-time password in it.
    pub(crate) fn otp(&self) -> String {
        let (_, rest) =
            self.text.split_once("one-time password is: ").unwrap_or_else(|| panic!("no OTP: {}", self.text));
        rest.chars().take_while(char::is_ascii_digit).collect()
    }
}

/// The server; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Smtp {
    pub port: u16,
    mails: Arc<Mutex<Vec<Mail>>>,
    logins: Arc<Mutex<Vec<String>>>,
}

impl Smtp {
    pub(crate) async fn start() -> Self {
        Self::copying_to(None).await
    }

    /// The same, which also writes each mail to a file in this folder, named by its number and recipient.
    pub(crate) async fn copying_to(folder: Option<PathBuf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let smtp = Self { port, mails: Arc::default(), logins: Arc::default() };
        let server = smtp.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, folder) = (server.clone(), folder.clone());
                tokio::spawn(async move { server.talk(stream, folder).await });
            }
        });
        smtp
    }

    /// The configuration that makes pocketfleet use it.
    pub(crate) fn keys(&self) -> String {
        format!(
            "mail.smtp_host = \"127.0.0.1\"\nmail.smtp_port = {}\nmail.smtp_username = \"fleet\"\n\
             mail.smtp_password = \"planted-smtp-password\"\nmail.sender_address = \"fleet@example.com\"\n\
             mail.app_name = \"Fleet of Tests\"\n",
            self.port
        )
    }

    /// The mails to this address so far.
    pub(crate) fn mails_to(&self, to: &str) -> Vec<Mail> {
        self.mails.lock().unwrap().iter().filter(|mail| mail.to == to).cloned().collect()
    }

    /// The mail to this address with this number, from 1, when it is there.
    pub(crate) async fn mail_to(&self, to: &str, number: usize) -> Mail {
        eventually("a mail", async || self.mails_to(to).get(number - 1).cloned()).await
    }

    /// What clients said to sign in.
    pub(crate) fn logins(&self) -> Vec<String> {
        self.logins.lock().unwrap().clone()
    }

    async fn talk(&self, stream: TcpStream, folder: Option<PathBuf>) -> Option<()> {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        write.write_all(b"220 test\r\n").await.ok()?;
        let mut to = String::new();
        while let Some(line) = lines.next_line().await.ok()? {
            let upper = line.to_ascii_uppercase();
            let reply = if upper.starts_with("EHLO") {
                "250-test\r\n250 AUTH PLAIN"
            } else if upper.starts_with("AUTH") {
                self.logins.lock().unwrap().push(line);
                "235 welcome"
            } else if upper.starts_with("RCPT TO:") {
                line[8..].trim().trim_matches(['<', '>']).clone_into(&mut to);
                "250 ok"
            } else if upper == "DATA" {
                write.write_all(b"354 go on\r\n").await.ok()?;
                let mut text = String::new();
                while let Some(line) = lines.next_line().await.ok()?.filter(|line| line != ".") {
                    text.extend([&*line, "\n"]);
                }
                let mail = Mail { to: to.clone(), text: unquoted(&text) };
                let mut mails = self.mails.lock().unwrap();
                if let Some(folder) = &folder {
                    let name = format!("{:04}-{to}", mails.len());
                    let draft = folder.join(format!("draft-{name}"));
                    std::fs::write(&draft, &mail.text).unwrap();
                    std::fs::rename(draft, folder.join(name)).unwrap();
                }
                mails.push(mail);
                "250 kept"
            } else if upper == "QUIT" {
                "221 bye"
            } else {
                "250 ok"
            };
            write.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
        }
        Some(())
    }
}

/// Undoes quoted-printable.
fn unquoted(text: &str) -> String {
    let text = text.replace("=\n", "");
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = (*first == b'=').then(|| tail.get(..2)).flatten().and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
