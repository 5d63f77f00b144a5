//! A bucket of Amazon S3, or of anything that speaks its protocol, as the place of backups.
//!
//! The names of chunks are hashes of what they hold, so a second write of one changes nothing that matters; manifests
//! have random names. An object that is there is left alone all the same.

use std::fmt;
use std::path::Path as FilePath;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::PutPayload;
use object_store::RetryConfig;
use object_store::aws::AmazonS3;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;

use super::Error;
use super::config::Config;
use crate::outbound;
use crate::outbound::Guard;
use crate::outbound::objects::Guarded;
use crate::store;
use crate::store::BoxFuture;
use crate::store::blobs::BlobInfo;
use crate::store::blobs::Blobs;

/// Most bytes of an answer: a sealed chunk, or a page of a list.
const MOST: usize = 16 << 20;

/// The bucket.
pub(super) struct Bucket {
    store: AmazonS3,
    prefix: Path,
    name: String,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Bucket {
    pub(super) fn open(config: &Config, outbound: &outbound::Config, name: &str, prefix: &str) -> Result<Self, Error> {
        let failed = |what: &str| Error::Store(what.to_owned());
        let endpoint = match config.s3_endpoint.trim_end_matches('/') {
            "" => format!("https://s3.{}.amazonaws.com", config.s3_region),
            endpoint => endpoint.to_owned(),
        };
        // The operator's own word is enough for the one address that it names.
        let allowed = outbound::Config { allow: vec![endpoint.clone()], ..outbound.clone() };
        let guard = Guard::new(&allowed)
            .map_err(|_| failed("backup.s3_endpoint is not an origin such as https://s3.example.com"))?;
        let store = AmazonS3Builder::new()
            .with_http_connector(Guarded::new(guard, MOST))
            .with_access_key_id(&config.s3_access_key_id)
            .with_secret_access_key(config.s3_secret_key.expose().unwrap_or_default())
            .with_region(&config.s3_region)
            .with_bucket_name(name)
            .with_virtual_hosted_style_request(false)
            .with_allow_http(endpoint.starts_with("http://"))
            .with_endpoint(endpoint)
            .with_retry(RetryConfig { max_retries: 4, retry_timeout: Duration::from_mins(2), ..RetryConfig::default() })
            .build()
            .map_err(|_| failed("the bucket cannot be addressed like this"))?;
        Ok(Self { store, prefix: Path::from(prefix), name: name.to_owned() })
    }

    fn at(&self, key: &str) -> Path {
        key.split('/').fold(self.prefix.clone(), Path::join)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the bucket of the backups refused: {0}")]
struct Refused(&'static str);

/// Its text may hold the address and what the service answered.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn translate(error: object_store::Error) -> store::Error {
    store::Error::engine(Refused(match error {
        object_store::Error::NotFound { .. } => "not found",
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            "the key is not accepted, or may not do this"
        }
        _ => "it cannot be reached, or did not answer as it should",
    }))
}

impl Blobs for Bucket {
    fn put<'a>(&'a self, key: &'a str, object: Bytes) -> BoxFuture<'a, Result<(), store::Error>> {
        Box::pin(async move {
            let at = self.at(key);
            match self.store.head(&at).await {
                Ok(_) => return Err(store::Error::Exists),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(translate(error)),
            }
            self.store.put(&at, PutPayload::from(object)).await.map(drop).map_err(translate)
        })
    }

    fn put_file<'a>(&'a self, _: &'a str, _: &'a FilePath) -> BoxFuture<'a, Result<(), store::Error>> {
        Box::pin(async { Err(store::Error::Invalid("backups are stored in chunks")) })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, store::Error>> {
        Box::pin(async move {
            match self.store.get(&self.at(key)).await {
                Ok(found) => found.bytes().await.map(Some).map_err(translate),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(translate(error)),
            }
        })
    }

    fn get_file<'a>(&'a self, _: &'a str, _: &'a FilePath) -> BoxFuture<'a, Result<Option<u64>, store::Error>> {
        Box::pin(async { Err(store::Error::Invalid("backups are stored in chunks")) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<BlobInfo>, store::Error>> {
        Box::pin(async move {
            let at = self.at(prefix.trim_end_matches('/'));
            let own = if self.prefix.as_ref().is_empty() { String::new() } else { format!("{}/", self.prefix) };
            let found: Vec<_> = self.store.list(Some(&at)).try_collect().await.map_err(translate)?;
            let info = |meta: object_store::ObjectMeta| {
                let key = meta.location.as_ref().strip_prefix(&own)?.to_owned();
                Some(BlobInfo { key, bytes: meta.size, modified: Some(meta.last_modified.into()) })
            };
            let mut infos: Vec<BlobInfo> = found.into_iter().filter_map(info).collect();
            infos.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            Ok(infos)
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, store::Error>> {
        Box::pin(async move {
            match self.store.delete(&self.at(key)).await {
                Ok(()) => Ok(true),
                Err(object_store::Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(translate(error)),
            }
        })
    }
}
