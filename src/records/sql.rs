//! Reading by SQL, through `PocketBase`'s own `POST /api/sql` (since 0.39, superusers only): for what its filters cannot
//! say, such as full-text search, without a hook, which every instance would pay for at every start.
//!
//! Seen with 0.40.6: the answer is `{"columns":[{"name","type"}],"rows":[[…]]}` where every value is a text, numbers
//! and booleans too, or null; of several statements the last one's rows are given. Before `SQLite` sees a statement,
//! `{:name}`, `{{name}}` and `[[name]]` in it are replaced, inside of literals as well, so a text is written as the hex
//! digits of its bytes.

use serde::Deserialize;

use super::Error;

/// A text as an expression of SQL, whatever is in it.
pub fn sql_text(text: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut sql = String::with_capacity(text.len() * 2 + 16);
    sql.push_str("CAST(x'");
    for byte in text.bytes() {
        sql.push(char::from(DIGITS[usize::from(byte >> 4)]));
        sql.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    sql.push_str("' AS TEXT)");
    sql
}

#[derive(Deserialize)]
struct Answer {
    rows: Vec<Vec<Option<String>>>,
}

pub(super) fn rows(answer: &[u8]) -> Result<Vec<Vec<Option<String>>>, Error> {
    serde_json::from_slice::<Answer>(answer).map(|answer| answer.rows).map_err(|_| Error::Unexpected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_digits_and_nothing_else() {
        assert_eq!(sql_text("a'{:x}"), "CAST(x'61277b3a787d' AS TEXT)");
        assert_eq!(sql_text(""), "CAST(x'' AS TEXT)");
    }

    #[test]
    fn an_answer_is_texts_and_nulls() {
        let answer = br#"{"execTime":0,"affectedRows":0,"columns":[{"name":"a","type":"","nullable":true}],"rows":[["1",null]]}"#;
        assert_eq!(rows(answer).unwrap(), [[Some("1".to_owned()), None]]);
        assert!(matches!(rows(b"{}"), Err(Error::Unexpected)));
    }
}
