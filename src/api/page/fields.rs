//! What a form of the page sent.

use axum::Form;
use axum::extract::FromRequest;
use axum::extract::Request;
use axum::response::Response;

use crate::api::page::layout;
use crate::error::Code;
use crate::error::Problem;

/// What was filled in, in the order of the form; a name may come more than once.
#[derive(Debug)]
pub(super) struct Fields(pub(super) Vec<(String, String)>);

impl Fields {
    /// The first of a name, without the blanks around it; empty when absent.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.trim())
    }

    /// The first of a name as it was typed: a password may begin with a blank.
    pub(super) fn exact(&self, name: &str) -> &str {
        self.0.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value)
    }

    /// All of a name.
    pub(super) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.trim())
    }

    /// Which page of ours the form stands on; the first page when it does not say so properly.
    pub(super) fn page(&self) -> &str {
        let path = self.text("page");
        let is_ours = path == "/app" || path.starts_with("/app/") || path.starts_with("/app?");
        let is_plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_?=&%.+".contains(&byte));
        if is_ours && is_plain && !path.contains("//") { path } else { "/app" }
    }
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let Ok(Form(fields)) = Form::from_request(request, state).await else {
            let problem = Problem::new(Code::InvalidBody).message("this is not what the form of this page sends");
            return Err(layout::failure(&problem));
        };
        Ok(Self(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_leads_back_to_pages_of_ours_only() {
        let back = |page: &str| Fields(vec![("page".to_owned(), page.to_owned())]).page().to_owned();
        for ours in ["/app", "/app/queue", "/app?search=a%20b&cursor=x", "/app/meetings/17"] {
            assert_eq!(back(ours), ours);
        }
        for other in
            ["", "https://evil.example", "//evil.example", "/app//evil.example", "/apple", "/app/\r\nx: y", "/api"]
        {
            assert_eq!(back(other), "/app", "{other}");
        }
    }

    #[test]
    fn fields_are_found_by_name() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let fields = Fields(vec![pair("a", " 1 "), pair("a", "2"), pair("b", "")]);
        assert_eq!((fields.text("a"), fields.exact("a"), fields.text("c")), ("1", " 1 ", ""));
        assert_eq!(fields.all("a").collect::<Vec<_>>(), ["1", "2"]);
    }
}
