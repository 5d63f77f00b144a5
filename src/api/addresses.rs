//! Where tenants are reached, for answers that say so.

use std::sync::Arc;

use crate::store::tenants::Tenant;

/// The address of pocketfleet, and the domain below which tenants have their hosts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Addresses {
    public_url: Arc<str>,
    domain: Arc<str>,
}

impl Addresses {
    /// `public_url` without a path; `domain` empty = no hosts.
    pub fn new(public_url: &str, domain: &str) -> Self {
        Self { public_url: public_url.trim_end_matches('/').into(), domain: domain.to_ascii_lowercase().into() }
    }

    /// The address of one of our own paths.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.public_url)
    }

    /// The address of a tenant's own host, with the scheme and port that users see. `None`: tenants have no hosts.
    pub fn host(&self, tenant: &Tenant) -> Option<String> {
        if self.domain.is_empty() {
            return None;
        }
        let (scheme, rest) = self.public_url.split_once("://")?;
        let authority = rest.split('/').next()?;
        let port = authority
            .rsplit_once(':')
            .filter(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
            .map_or_else(String::new, |(_, port)| format!(":{port}"));
        Some(format!("{scheme}://{}.{}{port}", name_of(tenant), self.domain))
    }

    /// The base address for SDKs: the host if there is one, else the path.
    pub fn of(&self, tenant: &Tenant) -> String {
        self.host(tenant).unwrap_or_else(|| format!("{}/t/{}", self.public_url, name_of(tenant)))
    }
}

fn name_of(tenant: &Tenant) -> &str {
    tenant.slug.as_deref().unwrap_or_else(|| tenant.id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;
    use crate::store::tenants::Kind;

    #[test]
    fn hosts_have_the_public_scheme_and_port() {
        let mut tenant = Tenant::new(TenantId::parse("w-1").unwrap(), Kind::Workspace, "workspace", None);
        let plain = Addresses::new("https://example.com/", "");
        assert_eq!((plain.host(&tenant), plain.of(&tenant).as_str()), (None, "https://example.com/t/w-1"));
        tenant.slug = Some("acme".to_owned());
        let hosts = Addresses::new("http://localhost:3000", "Apps.example.com");
        assert_eq!(hosts.of(&tenant), "http://acme.apps.example.com:3000");
        assert_eq!(Addresses::new("http://[::1]", "a.b").of(&tenant), "http://acme.a.b");
    }
}
