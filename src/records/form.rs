//! A record with a file, as the multipart form that `PocketBase` takes: the fields as one JSON part (`@jsonPayload`),
//! the file as another.

use bytes::Bytes;
use serde_json::Value;

/// A file for a field.
#[derive(Debug, Clone, Copy)]
pub struct Upload<'a> {
    /// The field.
    pub field: &'a str,
    /// What the file is called.
    pub name: &'a str,
    /// Its media type.
    pub content_type: &'a str,
    /// What is in it.
    pub bytes: &'a [u8],
}

/// The content type and the body.
pub(super) fn encode(fields: &Value, upload: &Upload<'_>) -> (String, Bytes) {
    let line = format!("pocketfleet-{:032x}", rand::random::<u128>());
    let mut body = Vec::with_capacity(upload.bytes.len() + 1024);
    let head = format!(
        "--{line}\r\nContent-Disposition: form-data; name=\"@jsonPayload\"\r\n\r\n{fields}\r\n\
         --{line}\r\nContent-Disposition: form-data; name=\"{}\"; filename=\"{}\"\r\nContent-Type: {}\r\n\r\n",
        plain(upload.field),
        plain(upload.name),
        plain(upload.content_type),
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(upload.bytes);
    body.extend_from_slice(format!("\r\n--{line}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={line}"), Bytes::from(body))
}

/// Without what would end a quoted text or a header.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c == '"' || c == '\\' || c.is_control() { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_cannot_leave_its_place() {
        let upload = Upload { field: "file", name: "a\"\r\nX: y", content_type: "text/plain", bytes: b"content" };
        let (content_type, body) = encode(&json!({"kind": "summary"}), &upload);
        let text = String::from_utf8(body.to_vec()).unwrap();
        let line = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
        assert_eq!(text.matches(line).count(), 3);
        assert!(text.contains("filename=\"a___X: y\"") && text.contains("\r\n\r\ncontent\r\n--"), "{text}");
        assert!(text.contains("{\"kind\":\"summary\"}"));
    }
}
