//! The guard: which URLs may be called, and the client that calls them.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use reqwest::Response;
use reqwest::Url;
use reqwest::header;
use reqwest::header::HeaderMap;

use super::Config;
use super::address::is_public;
use super::client;
use super::config::ConfigError;
use super::resolver::Lookup;
use super::resolver::Resolver;
use super::resolver::system;

/// Why a URL is not called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It cannot be read.
    #[error("that is not a URL; write it as https://host/path")]
    NotAUrl,
    /// Another scheme.
    #[error("only https is called")]
    Scheme,
    /// `user:password@host`.
    #[error("a URL with a user name or password in it is not called")]
    Credentials,
    /// A port that is not on the list.
    #[error("this port is not called; use the usual one for https")]
    Port,
    /// An address that is not on the public internet, as such or as what the name resolves to.
    #[error("this address is not on the public internet")]
    Address,
    /// A host that the operator exempted, but with another scheme or port.
    #[error("this host is called with the scheme and port that the operator allowed only")]
    OtherOrigin,
}

/// Why a guarded call did not give an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was not made.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nobody answered, or not in time.
    #[error("the other side did not answer")]
    Unreachable(#[source] reqwest::Error),
    /// One redirect after another, or one that leads nowhere.
    #[error("the other side redirects too often, or to nowhere")]
    Redirects,
}

impl From<reqwest::Error> for Error {
    /// Finds a refusal of the resolver in an error. The URL is taken out: it may be a credential.
    fn from(error: reqwest::Error) -> Self {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(inner) = source {
            if let Some(refused) = inner.downcast_ref::<Refused>() {
                return Self::Refused(*refused);
            }
            source = inner.source();
        }
        Self::Unreachable(error.without_url())
    }
}

/// The way to addresses that others name. Cheap to clone.
#[derive(Clone)]
pub struct Guard {
    rules: Arc<Rules>,
    http: reqwest::Client,
    uploads: reqwest::Client,
}

struct Rules {
    ports: Vec<u16>,
    /// Exempt origins as `(scheme, host, port)`, and their hosts.
    origins: HashSet<Origin>,
    hosts: Arc<HashSet<String>>,
}

type Origin = (String, String, u16);

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The client cannot be made.
    #[error("no HTTP client can be made")]
    Client(#[from] reqwest::Error),
}

impl Guard {
    /// A guard with the system's resolver.
    pub fn new(config: &Config) -> Result<Self, BuildError> {
        Self::with_lookup(config, system())
    }

    fn with_lookup(config: &Config, lookup: Lookup) -> Result<Self, BuildError> {
        config.validate()?;
        let origins: HashSet<Origin> = config.allow.iter().filter_map(|text| origin(text)).collect();
        let hosts: Arc<HashSet<String>> = Arc::new(origins.iter().map(|(_, host, _)| host.clone()).collect());
        let timeout = config.connect_timeout;
        let resolver = Resolver { lookup, exempt: Arc::clone(&hosts), timeout };
        let builder = || {
            client()
                .connect_timeout(timeout)
                .dns_resolver(resolver.clone())
                .user_agent(concat!("pocketfleet/", env!("CARGO_PKG_VERSION")))
        };
        let http = builder().read_timeout(config.idle_timeout).build()?;
        let uploads = builder().build()?;
        Ok(Self { rules: Arc::new(Rules { ports: config.ports.clone(), origins, hosts }), http, uploads })
    }

    /// Whether a URL may be called, as far as it says so itself. What its name resolves to is looked at by
    /// [`client`](Self::client) when it connects.
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::Credentials);
        }
        let Some(origin) = origin_of(url) else {
            return Err(if url.scheme() == "https" { Refused::NotAUrl } else { Refused::Scheme });
        };
        if self.rules.origins.contains(&origin) {
            return Ok(());
        }
        let (scheme, host, port) = origin;
        if scheme != "https" {
            return Err(Refused::Scheme);
        }
        // Its address is not looked at when connecting, so nothing but the exempt origin may be reached there.
        if self.rules.hosts.contains(&host) {
            return Err(Refused::OtherOrigin);
        }
        if !self.rules.ports.contains(&port) {
            return Err(Refused::Port);
        }
        // An address in the URL never meets the resolver. The URL's parser has brought all its spellings to one.
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        match literal.parse::<IpAddr>() {
            Ok(address) if !is_public(address) => Err(Refused::Address),
            _ => Ok(()),
        }
    }

    /// Reads and checks.
    pub fn parse(&self, text: &str) -> Result<Url, Refused> {
        let url = Url::parse(text).map_err(|_| Refused::NotAUrl)?;
        self.check(&url)?;
        Ok(url)
    }

    /// The client: it connects to public addresses only (or exempt hosts), follows no redirect, and gives up on an
    /// answer that stands still. Only for URLs that passed [`check`](Self::check). Whoever reads a body sets its own bound
    /// and, for short answers, a deadline.
    pub fn client(&self) -> &reqwest::Client {
        &self.http
    }

    /// The same client for requests with long bodies: it waits for the head of an answer as long as the request's own
    /// timeout says, which has to be set, because an answer stands still for as long as its request is being sent.
    pub fn uploads(&self) -> &reqwest::Client {
        &self.uploads
    }

    /// Gets a URL, following at most `redirects` redirects that each pass the same check and `accepts`. Headers that
    /// carry credentials stay with the first origin. Any status that is no redirect is an answer.
    pub async fn get(
        &self,
        url: Url,
        mut headers: HeaderMap,
        redirects: usize,
        accepts: impl Fn(&Url) -> bool,
    ) -> Result<Response, Error> {
        let mut url = url;
        for _ in 0..=redirects {
            self.check(&url)?;
            if !accepts(&url) {
                return Err(Error::Refused(Refused::Address));
            }
            let response = self.http.get(url.clone()).headers(headers.clone()).send().await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok()).ok_or(Error::Redirects)?;
            if origin_of(&next) != origin_of(&url) {
                for name in [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION] {
                    headers.remove(name);
                }
                headers.remove("x-api-key");
            }
            url = next;
        }
        Err(Error::Redirects)
    }
}

fn origin_of(url: &Url) -> Option<Origin> {
    let host = url.host_str().filter(|host| !host.is_empty())?;
    Some((url.scheme().to_owned(), host.to_ascii_lowercase(), url.port_or_known_default()?))
}

/// Reads an origin as an operator writes it: nothing after the port.
pub(super) fn origin(text: &str) -> Option<Origin> {
    let url = Url::parse(text).ok()?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && !text.ends_with('/');
    let is_http = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    if is_bare && is_http { origin_of(&url) } else { None }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    use super::*;

    fn guard(allow: &[&str]) -> Guard {
        let allow = allow.iter().map(|origin| (*origin).to_owned()).collect();
        Guard::new(&Config { allow, ..Config::default() }).unwrap()
    }

    #[test]
    fn what_a_url_says_itself_is_refused_before_anything_is_sent() {
        let guard = guard(&[]);
        for (url, refusal) in [
            ("", Refused::NotAUrl),
            ("hooks.example.com/x", Refused::NotAUrl),
            ("https://", Refused::NotAUrl),
            ("https://[::1", Refused::NotAUrl),
            ("https://1.2.3.4.5/", Refused::NotAUrl),
            ("file:///etc/passwd", Refused::Scheme),
            ("gopher://127.0.0.1:6379/_FLUSHALL", Refused::Scheme),
            ("ftp://example.com/", Refused::Scheme),
            ("data:text/plain,x", Refused::Scheme),
            ("javascript:alert(1)", Refused::Scheme),
            ("http://example.com/", Refused::Scheme),
            ("http://127.1/", Refused::Scheme),
            ("http://0x7f000001/", Refused::Scheme),
            ("https://user@example.com/", Refused::Credentials),
            ("https://user:pass@example.com/", Refused::Credentials),
            ("https://:pass@example.com/", Refused::Credentials),
            ("https://example.com@127.0.0.1/", Refused::Credentials),
            ("https://example.com:22/", Refused::Port),
            ("https://example.com:80/", Refused::Port),
            ("https://example.com:6379/", Refused::Port),
            ("https://127.0.0.1/", Refused::Address),
            ("https://127.1/", Refused::Address),
            ("https://127.0.0.1./", Refused::Address),
            ("https://0x7f000001/", Refused::Address),
            ("https://0x7f.1/", Refused::Address),
            ("https://2130706433/", Refused::Address),
            ("https://017700000001/", Refused::Address),
            ("https://0/", Refused::Address),
            ("https://%31%32%37.0.0.1/", Refused::Address),
            ("https://①②⑦.⓪.⓪.①/", Refused::Address),
            ("https://10.0.0.7/", Refused::Address),
            ("https://169.254.169.254/latest/meta-data/", Refused::Address),
            ("https://100.64.0.1/", Refused::Address),
            ("https://[::1]/", Refused::Address),
            ("https://[::]/", Refused::Address),
            ("https://[::ffff:127.0.0.1]/", Refused::Address),
            ("https://[::ffff:7f00:1]/", Refused::Address),
            ("https://[64:ff9b::7f00:1]/", Refused::Address),
            ("https://[fe80::1]/", Refused::Address),
            ("https://[fd00:ec2::254]/", Refused::Address),
            ("https://224.0.0.1/", Refused::Address),
        ] {
            assert_eq!(guard.parse(url).map(|url| url.to_string()), Err(refusal), "{url}");
        }
        for url in ["https://example.com/x?y=z", "https://example.com:8443/", "https://1.1.1.1/", "HTTPS://EXAMPLE.COM"]
        {
            assert!(guard.parse(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn an_exempt_origin_is_exempt_with_its_scheme_and_port_only() {
        let guard = guard(&["http://127.0.0.1:9000", "https://files.internal"]);
        assert!(guard.parse("http://127.0.0.1:9000/bucket").is_ok());
        assert!(guard.parse("http://127.1:9000/bucket").is_ok(), "another spelling of the same");
        assert!(guard.parse("https://files.internal/x").is_ok());
        assert_eq!(guard.parse("https://127.0.0.1:9000/"), Err(Refused::OtherOrigin));
        assert_eq!(guard.parse("http://127.0.0.1:9001/"), Err(Refused::Scheme));
        assert_eq!(guard.parse("https://files.internal:8443/"), Err(Refused::OtherOrigin));
        assert_eq!(guard.parse("http://user@127.0.0.1:9000/"), Err(Refused::Credentials));
        for text in ["127.0.0.1:9000", "http://a/b", "http://a/", "ftp://a", "http://u@a", "*", ""] {
            assert!(Guard::new(&Config { allow: vec![text.to_owned()], ..Config::default() }).is_err(), "{text}");
        }
    }

    /// A name that is public when it is looked up first, and loopback from then on.
    fn rebinding(asked: &Arc<AtomicUsize>) -> Lookup {
        let asked = Arc::clone(asked);
        Arc::new(move |_| {
            let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            Box::pin(async move { Ok(vec![if first { [203, 0, 114, 1] } else { [127, 0, 0, 1] }.into()]) })
        })
    }

    #[tokio::test]
    async fn a_name_that_turns_to_loopback_is_not_connected_to() {
        let asked = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Config { ports: vec![port], ..Config::default() };
        let guard = Guard::with_lookup(&config, rebinding(&asked)).unwrap();
        let url = guard.parse(&format!("https://rebind.example:{port}/")).unwrap();
        // Somebody looked it up, and found it public.
        asked.fetch_add(1, Ordering::Relaxed);
        let error = guard.get(url, HeaderMap::new(), 3, |_| true).await.unwrap_err();
        assert!(matches!(error, Error::Refused(Refused::Address)), "{error:?}");
        let accepted = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept()).await;
        assert!(accepted.is_err(), "a connection came");
    }

    #[tokio::test]
    async fn of_several_addresses_only_public_ones_are_given_out() {
        let lookup: Lookup = Arc::new(|_| {
            Box::pin(async {
                Ok(vec!["127.0.0.1".parse().unwrap(), "1.1.1.1".parse().unwrap(), "::1".parse().unwrap()])
            })
        });
        let timeout = std::time::Duration::from_secs(1);
        let resolver = Resolver { lookup, exempt: Arc::default(), timeout };
        assert_eq!(resolver.addresses("mixed.example").await.unwrap(), ["1.1.1.1".parse::<IpAddr>().unwrap()]);
        let exempt = Resolver { exempt: Arc::new(["mixed.example".to_owned()].into()), ..resolver };
        assert_eq!(exempt.addresses("Mixed.Example").await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn names_of_this_machine_are_refused() {
        let guard = guard(&[]);
        for url in ["https://localhost/", "https://localhost./"] {
            let url = guard.parse(url).unwrap();
            let error = guard.get(url, HeaderMap::new(), 0, |_| true).await.unwrap_err();
            // A machine may not know the second name at all.
            assert!(matches!(error, Error::Refused(Refused::Address) | Error::Unreachable(_)), "{error:?}");
        }
    }
}
