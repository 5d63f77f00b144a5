//! A small body of named fields, in any of the forms that `PocketBase` takes: JSON, or a form, URL-encoded or
//! multipart. Only texts can stand in a form; a file in one is ignored.
//!
//! What a handler passes on is made anew from these fields, so that nobody downstream reads another body than we did.

use std::fmt;

use axum::extract::FromRef;
use axum::extract::FromRequest;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header;
use percent_encoding::percent_decode_str;
use serde_json::Map;
use serde_json::Value;

use crate::api::Limits;
use crate::api::error::ApiError;
use crate::api::json;
use crate::error::Code;
use crate::error::Problem;

/// Fields of one body; more are not looked at.
const MAX_FIELDS: usize = 32;

/// The fields of a body, at most `server.max_json_bytes` long.
#[derive(Clone, PartialEq, Eq)]
pub struct Fields(pub Map<String, Value>);

impl fmt::Debug for Fields {
    // Values are passwords and codes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl Fields {
    /// A text; empty when missing.
    pub fn text(&self, name: &str) -> Result<&str, Problem> {
        Ok(self.optional(name)?.unwrap_or_default())
    }

    /// A text that may be missing.
    pub fn optional(&self, name: &str) -> Result<Option<&str>, Problem> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Problem::new(Code::InvalidBody).message("a field of the body has the wrong type")),
        }
    }
}

impl<S> FromRequest<S> for Fields
where
    S: Send + Sync,
    Limits: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let form = Form::of(request.headers())?;
        let body = json::read(request.into_body(), Limits::from_ref(state).json, json::JSON_TIME).await?;
        Ok(Self(form.parse(&body)?))
    }
}

/// How a body is written.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    Json,
    Encoded,
    /// With this line between the parts.
    Multipart(String),
}

impl Form {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        if json::is_json(headers) {
            return Ok(Self::Json);
        }
        let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (media, parameters) = value.split_once(';').unwrap_or((value, ""));
        match media.trim().to_ascii_lowercase().as_str() {
            "application/x-www-form-urlencoded" => Ok(Self::Encoded),
            "multipart/form-data" => {
                let boundary = parameter(parameters, "boundary").filter(|b| (1..=70).contains(&b.len()));
                boundary.map(|boundary| Self::Multipart(format!("--{boundary}"))).ok_or_else(unreadable)
            }
            _ => Err(Problem::new(Code::InvalidBody)
                .message("send the body as JSON, with `Content-Type: application/json`, or as a form")),
        }
    }

    fn parse(&self, body: &[u8]) -> Result<Map<String, Value>, Problem> {
        match self {
            Self::Json => json::parse(body),
            Self::Encoded => encoded(std::str::from_utf8(body).map_err(|_| unreadable())?),
            Self::Multipart(line) => Ok(multipart(body, line.as_bytes())),
        }
    }
}

fn unreadable() -> Problem {
    Problem::new(Code::InvalidBody).message("the form cannot be read")
}

pub(crate) fn encoded(body: &str) -> Result<Map<String, Value>, Problem> {
    let decode = |text: &str| -> Result<String, Problem> {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8().map(std::borrow::Cow::into_owned).map_err(|_| unreadable())
    };
    let mut fields = Map::new();
    for pair in body.split('&').filter(|pair| !pair.is_empty()).take(MAX_FIELDS) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // Of two values `PocketBase` takes the first.
        fields.entry(decode(name)?).or_insert(Value::from(decode(value)?));
    }
    Ok(fields)
}

/// The texts among the parts. What does not look like a part is skipped: its field is then missing, which is refused
/// where it is needed.
fn multipart(body: &[u8], line: &[u8]) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut rest = body;
    for _ in 0..=MAX_FIELDS {
        let (part, tail) = match find(rest, line) {
            Some(at) => (&rest[..at], Some(&rest[at + line.len()..])),
            None => (rest, None),
        };
        if let Some((name, text)) = part_text(part) {
            fields.entry(name).or_insert(Value::from(text));
        }
        match tail {
            Some(tail) => rest = tail,
            None => break,
        }
    }
    fields
}

/// Name and text of one part, which begins after its boundary.
fn part_text(part: &[u8]) -> Option<(String, &str)> {
    let part = part.strip_prefix(b"\r\n")?;
    let end = find(part, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&part[..end]).ok()?;
    let text = std::str::from_utf8(part[end + 4..].strip_suffix(b"\r\n")?).ok()?;
    let disposition = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let (_, parameters) = disposition.split_once(';')?;
    if parameter(parameters, "filename").is_some() {
        return None;
    }
    Some((parameter(parameters, "name")?, text))
}

/// A parameter of a header such as `; name="email"`.
fn parameter(parameters: &str, wanted: &str) -> Option<String> {
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(content_type: &str, body: &str) -> Result<Value, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        Form::of(&headers)?.parse(body.as_bytes()).map(Value::Object)
    }

    #[test]
    fn three_forms_say_the_same() {
        let expected = json!({"identity": "ada+x@example.com", "password": "a b&ä"});
        let multipart = "--x\r\nContent-Disposition: form-data; name=\"identity\"\r\n\r\nada+x@example.com\r\n\
            --x\r\ncontent-disposition: form-data; name=password\r\nContent-Type: text/plain\r\n\r\na b&ä\r\n\
            --x\r\nContent-Disposition: form-data; name=\"avatar\"; filename=\"a.png\"\r\n\r\nPNG\r\n--x--\r\n";
        for (content_type, body) in [
            ("application/json; charset=utf-8", &*expected.to_string()),
            ("application/x-www-form-urlencoded", "identity=ada%2Bx%40example.com&password=a+b%26%C3%A4"),
            ("multipart/form-data; boundary=\"x\"", multipart),
        ] {
            assert_eq!(read(content_type, body).unwrap(), expected, "{content_type}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_or_missing() {
        for (content_type, body) in [
            ("text/plain", "identity=x"),
            ("application/json", "[]"),
            ("application/x-www-form-urlencoded", "identity=%ff"),
            ("multipart/form-data", "x"),
        ] {
            assert_eq!(read(content_type, body).unwrap_err().code, Code::InvalidBody, "{content_type}");
        }
        for body in ["", "--x", "--x\r\n\r\n\r\n--x--", "--x\r\nContent-Disposition: form-data; name=a\r\n\r\nno end"] {
            assert_eq!(read("multipart/form-data; boundary=x", body).unwrap(), json!({}), "{body}");
        }
        let fields = Fields(json!({"a": 1}).as_object().cloned().unwrap());
        assert_eq!(fields.text("a").unwrap_err().code, Code::InvalidBody);
        assert_eq!(fields.text("b").unwrap(), "");
    }
}
