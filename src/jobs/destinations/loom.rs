//! The hand-off to Loom, which takes files from a person only.
//!
//! The file stays staged with a link; the person uploads it in Loom and submits the share link. We look at the link's
//! shape, and ask Loom's oEmbed whether there is a video behind it. There is no API key of Loom, so none is asked for.
//! Source: <https://dev.loom.com/docs/embed-sdk/api> (oEmbed); the shape of share links as seen.

use std::fmt;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use super::Delivered;
use super::error::Error;
use super::parts;
use crate::outbound::Guard;

/// Loom takes files below this size.
pub const MAX_BYTES: u64 = 4 * 1024 * 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(15);
const MAX_ANSWER: usize = 256 * 1024;

/// The `[loom]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where oEmbed answers; empty = links are judged by their shape alone.
    pub oembed_url: String,
}

/// What is asked of Loom.
#[derive(Clone)]
pub struct Loom {
    guard: Guard,
    oembed: Option<Url>,
}

impl fmt::Debug for Loom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loom").finish_non_exhaustive()
    }
}

/// A share link whose shape is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareLink(String);

impl ShareLink {
    /// Reads a link as a person pastes it; what follows the video's id is left out.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let url = Url::parse(text.trim()).map_err(|_| Error::NotAShareLink)?;
        let is_loom = url.scheme() == "https"
            && matches!(url.host_str(), Some("www.loom.com" | "loom.com"))
            && url.port().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let id = url.path().strip_prefix("/share/").map(|rest| rest.trim_end_matches('/')).unwrap_or_default();
        // Titled links have the title before the id.
        let id = id.rsplit_once('-').map_or(id, |(_, id)| id);
        if is_loom && id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(format!("https://www.loom.com/share/{}", id.to_ascii_lowercase())))
        } else {
            Err(Error::NotAShareLink)
        }
    }

    /// The link in its usual form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a text can be a share link of Loom; for refusing a wrong one at once.
pub fn check_share_link(text: &str) -> Result<(), Error> {
    ShareLink::parse(text).map(drop)
}

#[derive(Deserialize)]
struct Embed {
    #[serde(default)]
    r#type: String,
}

impl Loom {
    /// Asks `config.oembed_url`, by way of the guard.
    pub fn new(guard: Guard, config: &Config) -> Result<Self, Error> {
        let oembed = if config.oembed_url.is_empty() { None } else { Some(guard.parse(&config.oembed_url)?) };
        Ok(Self { guard, oembed })
    }

    /// Whether there is a video behind a link.
    pub async fn accept(&self, link: &ShareLink) -> Result<Delivered, Error> {
        if let Some(oembed) = &self.oembed {
            let mut url = oembed.clone();
            url.query_pairs_mut().append_pair("url", link.as_str());
            let response = self.guard.client().get(url).timeout(TIMEOUT).send().await?;
            match response.status().as_u16() {
                // oEmbed's own words for: unknown, private.
                400 | 401 | 403 | 404 => return Err(Error::NoSuchVideo),
                _ => {}
            }
            let mut response = parts::judge(response).await?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > MAX_ANSWER {
                    return Err(Error::Unexpected("more of an oEmbed answer than it can need"));
                }
                body.extend_from_slice(&chunk);
            }
            let embed: Embed = serde_json::from_slice(&body).map_err(|_| Error::Unexpected("no oEmbed answer"))?;
            if embed.r#type != "video" {
                return Err(Error::NoSuchVideo);
            }
        }
        Ok(Delivered { url: Some(link.as_str().to_owned()), location: link.as_str().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn links_are_brought_to_one_form() {
        let usual = format!("https://www.loom.com/share/{ID}");
        for text in [
            usual.clone(),
            format!("  https://loom.com/share/{ID}?sid=1#t=2 "),
            format!("https://www.loom.com/share/{}/", ID.to_uppercase()),
            format!("https://www.loom.com/share/My-Title-{ID}"),
        ] {
            assert_eq!(ShareLink::parse(&text).unwrap().as_str(), usual, "{text}");
        }
    }

    #[test]
    fn other_links_are_refused() {
        for text in [
            String::new(),
            "hello".to_owned(),
            format!("http://www.loom.com/share/{ID}"),
            format!("https://www.loom.com.example.com/share/{ID}"),
            format!("https://evil.example/https://www.loom.com/share/{ID}"),
            format!("https://user@www.loom.com/share/{ID}"),
            format!("https://www.loom.com:8443/share/{ID}"),
            format!("https://www.loom.com/embed/{ID}"),
            format!("https://www.loom.com/share/{ID}0"),
            format!("https://www.loom.com/share/{}", &ID[1..]),
            format!("https://www.loom.com/share/{ID}/../../x"),
        ] {
            assert!(matches!(ShareLink::parse(&text), Err(Error::NotAShareLink)), "{text}");
        }
    }
}
