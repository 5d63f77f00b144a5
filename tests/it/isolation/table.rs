//! The table in the documentation, compared with what was found.

use std::collections::BTreeMap;

use crate::support::root;

const BEGIN: &str = "<!-- the escape suite writes this table -->\n";
const END: &str = "<!-- end of the table -->";
const RENEW: &str = "POCKETFLEET_WRITE_ISOLATION_TABLE";
const LEVELS: usize = 3;

/// What was tried: rows in order, and by level whether it worked.
#[derive(Default)]
pub(super) struct Found {
    rows: Vec<&'static str>,
    cells: BTreeMap<(usize, u8), bool>,
}

impl Found {
    pub(super) fn note(&mut self, name: &'static str, level: u8, is_open: bool) {
        let row = self.rows.iter().position(|row| *row == name).unwrap_or_else(|| {
            self.rows.push(name);
            self.rows.len() - 1
        });
        self.cells.insert((row, level), is_open);
    }

    /// Fails where a column that was tried is not as documented; writes those columns when asked to.
    pub(super) fn compare_with_documentation(&self) {
        let path = root().join("docs/isolation.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once(BEGIN).unwrap();
        let (table, after) = rest.split_once(END).unwrap();
        let fresh = self.render(&parse(table));
        if fresh == table {
            return;
        }
        let is_asked = std::env::var_os(RENEW).is_some();
        assert!(is_asked, "docs/isolation.md says something else; look at it, then renew it with {RENEW}=1:\n{fresh}");
        std::fs::write(path, format!("{before}{BEGIN}{fresh}{END}{after}")).unwrap();
    }

    /// What was not tried here stays as it was documented.
    fn render(&self, old: &BTreeMap<String, Vec<String>>) -> String {
        let mut text = "| a hook tries to | level 0 | level 1 | level 2 |\n|---|---|---|---|\n".to_owned();
        for (number, name) in self.rows.iter().enumerate() {
            let cells = (0..LEVELS).map(|level| {
                let tried = u8::try_from(level).ok().and_then(|level| self.cells.get(&(number, level)));
                match tried {
                    Some(true) => "**open**".to_owned(),
                    Some(false) => "closed".to_owned(),
                    None => old.get(*name).and_then(|cells| cells.get(level)).cloned().unwrap_or("?".to_owned()),
                }
            });
            let cells: Vec<String> = cells.collect();
            text.extend(["| ", name, " | ", &cells.join(" | "), " |\n"]);
        }
        text
    }
}

/// The cells of each row, by its name.
fn parse(table: &str) -> BTreeMap<String, Vec<String>> {
    let rows = table.lines().skip(2).filter_map(|line| {
        let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        Some((cells.next()?, cells.collect()))
    });
    rows.collect()
}
