//! Fetching media behind a signed link: through the guard, from listed hosts, without a key, from any offset.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use reqwest::header;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use time::OffsetDateTime;

use super::Error;
use super::Excerpt;
use super::Fathom;
use super::budget::Told;
use super::model::Media;
use super::transport::content_range;
use crate::outbound::Refused;

/// Most redirects that a link may take, each checked like the link.
const MAX_REDIRECTS: usize = 3;

/// Media on its way.
pub struct Fetched {
    response: Response,
    /// Where the bytes begin: what was asked for, or 0 when the media changed or no ranges are served.
    pub offset: u64,
    /// Length of the whole, as the host says.
    pub length: Option<u64>,
    /// A mark of this version, for the next [`Fathom::fetch`].
    pub etag: Option<String>,
}

impl fmt::Debug for Fetched {
    /// Without the answer, whose address is a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched").field("offset", &self.offset).field("length", &self.length).finish_non_exhaustive()
    }
}

impl Fetched {
    /// The next bytes; none at the end. A connection that breaks off early is an error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        Ok(self.response.chunk().await?)
    }
}

impl Fathom {
    /// Begins to fetch media at an offset. With the mark of an earlier part, the rest is of the same version or everything
    /// begins anew. [`Error::LinkExpired`]: ask for a new download.
    pub async fn fetch(&self, media: &Media, offset: u64, etag: Option<&str>) -> Result<Fetched, Error> {
        let guard = &self.shared.guard;
        let url = guard.parse(media.url.expose())?;
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-")).map_err(|_| Error::Malformed("a range"))?;
            headers.insert(header::RANGE, range);
            // A weak mark does not promise the same bytes.
            if let Some(etag) = etag.filter(|etag| !etag.starts_with("W/")).and_then(|etag| etag.parse().ok()) {
                headers.insert(header::IF_RANGE, etag);
            }
        }
        let config = &self.shared.config;
        let accepts = |url: &reqwest::Url| url.host_str().is_some_and(|host| config.is_media_host(host));
        if !accepts(&url) {
            return Err(Error::Refused(Refused::Address));
        }
        let mark = etag;
        let response = guard.get(url, headers, MAX_REDIRECTS, accepts).await?;
        let etag = response.headers().get(header::ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
        match response.status().as_u16() {
            200 => {
                let length = response.content_length();
                Ok(Fetched { response, offset: 0, length, etag })
            }
            206 => {
                let (first, length) = content_range(response.headers()).ok_or(Error::Malformed("no range"))?;
                if first != offset {
                    return Err(Error::Malformed("another range than asked for"));
                }
                if is_of_another(mark, etag.as_deref()) {
                    return Err(Error::Malformed("a range of another version"));
                }
                Ok(Fetched { response, offset, length, etag })
            }
            401 | 403 | 404 | 410 => Err(Error::LinkExpired),
            429 => {
                let told = Told::read(response.headers(), OffsetDateTime::now_utc());
                Err(Error::RateLimited { retry_after: told.wait().unwrap_or(Duration::from_secs(5)) })
            }
            status @ 500.. => Err(Error::Server { status, body: Excerpt::default() }),
            status => Err(Error::Rejected { status, body: Excerpt::default() }),
        }
    }
}

/// Whether the rest is marked as of another version than what is there.
fn is_of_another(have: Option<&str>, came: Option<&str>) -> bool {
    matches!((have, came), (Some(have), Some(came)) if have != came)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_of_the_same_version_as_far_as_it_says() {
        assert!(is_of_another(Some("\"1\""), Some("\"2\"")));
        assert!(!is_of_another(Some("\"1\""), Some("\"1\"")));
        assert!(!is_of_another(Some("\"1\""), None) && !is_of_another(None, Some("\"1\"")));
    }
}
