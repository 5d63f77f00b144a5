//! What users say of a destination, parsed and judged before it is kept. No secrets: those are in the vault.

use std::net::IpAddr;

use reqwest::Url;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use super::error::Error;
use crate::jobs::deliver::names;

/// Longest time for which a link to an object of S3 can be signed.
const MAX_LINK_HOURS: u32 = 7 * 24;

/// A kind of destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A folder of this server.
    Folder,
    /// A bucket that speaks S3.
    S3,
    /// One `PUT` for each file.
    HttpPut,
    /// Resumable uploads by tus 1.0.0.
    HttpTus,
    /// The hand-off to Loom.
    Loom,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Folder, Self::S3, Self::HttpPut, Self::HttpTus, Self::Loom];

    /// Its name in the API and in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::S3 => "s3",
            Self::HttpPut => "http_put",
            Self::HttpTus => "http_tus",
            Self::Loom => "loom",
        }
    }

    /// The kind with this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// The service of the vault that its key is stored under, if it takes one.
    pub fn key_service(self) -> Option<&'static str> {
        match self {
            Self::Folder | Self::Loom => None,
            Self::S3 => Some("s3"),
            Self::HttpPut | Self::HttpTus => Some("http"),
        }
    }
}

/// The settings of one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settings {
    /// Below the server's folder and the user's own in it.
    Folder(Folder),
    /// A bucket.
    S3(S3),
    /// A base address.
    HttpPut(Http),
    /// The address where uploads are created.
    HttpTus(Http),
    /// Nothing to say.
    Loom,
}

/// Of a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// A plain name below the user's own folder; empty = that folder.
    #[serde(default)]
    pub subfolder: String,
}

/// Of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// The bucket's name.
    pub bucket: String,
    /// Its region.
    #[serde(default = "default_region")]
    pub region: String,
    /// The service's address; empty = Amazon's.
    #[serde(default)]
    pub endpoint: String,
    /// What all keys begin with.
    #[serde(default)]
    pub prefix: String,
    /// Whether the bucket is named in the path; as a rule for everything but Amazon.
    #[serde(default = "default_path_style")]
    pub path_style: bool,
    /// For how many hours a delivered video gets a signed link; 0 = none.
    #[serde(default)]
    pub link_hours: u32,
}

/// Of something that takes uploads by HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// The address.
    pub url: String,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

fn default_path_style() -> bool {
    true
}

impl Settings {
    /// Whether what is delivered there can be had by a link that is made for it.
    pub fn gives_links(&self) -> bool {
        matches!(self, Self::S3(settings) if settings.link_hours > 0)
    }

    /// Reads and judges the settings of a kind.
    pub fn parse(kind: Kind, value: &Value) -> Result<Self, Error> {
        let value = if value.is_null() { json!({}) } else { value.clone() };
        match kind {
            Kind::Folder => {
                let folder: Folder = serde_json::from_value(value)
                    .map_err(|_| Error::Settings("a folder takes {\"subfolder\": \"a plain name\"}"))?;
                if !folder.subfolder.is_empty() && !names::is_plain(&folder.subfolder) {
                    return Err(Error::Settings("subfolder has to be one plain name, without / and not hidden"));
                }
                Ok(Self::Folder(folder))
            }
            Kind::S3 => {
                let s3: S3 = serde_json::from_value(value).map_err(|_| {
                    Error::Settings("s3 takes bucket, region, endpoint, prefix, path_style and link_hours")
                })?;
                s3.check()?;
                Ok(Self::S3(s3))
            }
            Kind::HttpPut => http(value).map(Self::HttpPut),
            Kind::HttpTus => http(value).map(Self::HttpTus),
            Kind::Loom if value.as_object().is_some_and(serde_json::Map::is_empty) => Ok(Self::Loom),
            Kind::Loom => Err(Error::Settings("loom takes no settings")),
        }
    }

    /// As it is kept and shown.
    pub fn to_value(&self) -> Value {
        let value = match self {
            Self::Folder(folder) => serde_json::to_value(folder),
            Self::S3(s3) => serde_json::to_value(s3),
            Self::HttpPut(http) | Self::HttpTus(http) => serde_json::to_value(http),
            Self::Loom => Ok(json!({})),
        };
        value.unwrap_or_default()
    }

    /// The kind they are of.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Folder(_) => Kind::Folder,
            Self::S3(_) => Kind::S3,
            Self::HttpPut(_) => Kind::HttpPut,
            Self::HttpTus(_) => Kind::HttpTus,
            Self::Loom => Kind::Loom,
        }
    }

    /// The address that would be called, if it is known before the call.
    pub fn address(&self) -> Option<Url> {
        match self {
            Self::Folder(_) | Self::Loom => None,
            Self::S3(s3) => Url::parse(&s3.service_url()).ok(),
            Self::HttpPut(http) | Self::HttpTus(http) => Url::parse(&http.url).ok(),
        }
    }
}

impl S3 {
    /// The address of the service.
    pub fn service_url(&self) -> String {
        if self.endpoint.is_empty() {
            format!("https://s3.{}.amazonaws.com", self.region)
        } else {
            self.endpoint.trim_end_matches('/').to_owned()
        }
    }

    fn check(&self) -> Result<(), Error> {
        let bucket = self.bucket.as_bytes();
        let is_name = (3..=63).contains(&bucket.len())
            && bucket.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
            && self.bucket.parse::<IpAddr>().is_err()
            && !self.bucket.contains("..");
        if !is_name {
            return Err(Error::Settings("bucket has to be a bucket's name: 3 to 63 of a-z, 0-9, - and ."));
        }
        let is_region = (1..=40).contains(&self.region.len())
            && self.region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !is_region {
            return Err(Error::Settings("region has to be a region's name, such as eu-central-1"));
        }
        if !self.endpoint.is_empty() {
            let url = address(&self.endpoint)?;
            if url.path() != "/" || url.query().is_some() {
                return Err(Error::Settings("endpoint has to be an address without a path"));
            }
        }
        let prefix = self.prefix.trim_matches('/');
        if self.prefix.len() > 500 || (!prefix.is_empty() && !prefix.split('/').all(names::is_plain)) {
            return Err(Error::Settings("prefix has to be plain names with / between them"));
        }
        if self.link_hours > MAX_LINK_HOURS {
            return Err(Error::Settings("link_hours has to be at most 168 (7 days)"));
        }
        Ok(())
    }
}

fn http(value: Value) -> Result<Http, Error> {
    let http: Http =
        serde_json::from_value(value).map_err(|_| Error::Settings("this kind takes {\"url\": \"https://…\"}"))?;
    let url = address(&http.url)?;
    if url.query().is_some() {
        return Err(Error::Settings("url has to be an address without a query"));
    }
    Ok(http)
}

/// An address that may be one; the guard decides later whether it may be called.
fn address(text: &str) -> Result<Url, Error> {
    let wanted = Error::Settings("the address has to be a URL such as https://example.com, without a user or fragment");
    let Ok(url) = Url::parse(text) else { return Err(wanted) };
    let is_plain = matches!(url.scheme(), "https" | "http")
        && url.host_str().is_some()
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none()
        && text.len() <= 2000;
    if is_plain { Ok(url) } else { Err(wanted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: Kind, value: &Value) -> bool {
        matches!(Settings::parse(kind, value), Err(Error::Settings(_)))
    }

    #[test]
    fn good_settings_are_kept_as_they_are() {
        let s3 = json!({"bucket": "meetings", "region": "eu-central-1", "endpoint": "https://s3.example.com",
            "prefix": "team/a", "path_style": true, "link_hours": 24});
        assert_eq!(Settings::parse(Kind::S3, &s3).unwrap().to_value(), s3);
        assert_eq!(Settings::parse(Kind::Loom, &Value::Null).unwrap(), Settings::Loom);
        assert_eq!(Settings::parse(Kind::Folder, &json!({})).unwrap().to_value(), json!({"subfolder": ""}));
        let put = json!({"url": "https://example.com/in/"});
        assert_eq!(Settings::parse(Kind::HttpPut, &put).unwrap().kind(), Kind::HttpPut);
    }

    #[test]
    fn folders_cannot_be_left() {
        for name in ["..", "../x", "a/b", "/etc", ".ssh", "a\0b"] {
            assert!(refused(Kind::Folder, &json!({ "subfolder": name })), "{name:?}");
        }
    }

    #[test]
    fn addresses_that_are_not_plain_are_refused() {
        for url in [
            "file:///etc/passwd",
            "gopher://example.com",
            "https://user:secret@example.com",
            "https://example.com/#x",
            "https://example.com/?token=1",
            "example.com",
            "",
        ] {
            assert!(refused(Kind::HttpPut, &json!({ "url": url })), "{url:?}");
            assert!(refused(Kind::HttpTus, &json!({ "url": url })), "{url:?}");
        }
        for (field, value) in [
            ("bucket", json!("192.168.1.1")),
            ("bucket", json!("A")),
            ("bucket", json!("a/../b")),
            ("region", json!("eu central")),
            ("endpoint", json!("https://example.com/path")),
            ("prefix", json!("a/../b")),
            ("link_hours", json!(169)),
            ("secret", json!("x")),
        ] {
            let mut settings = json!({"bucket": "meetings"});
            settings[field] = value;
            assert!(refused(Kind::S3, &settings), "{settings}");
        }
    }
}
