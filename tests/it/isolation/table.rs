//! Tables in the documentation, compared with what was found.

use std::collections::BTreeMap;

use crate::support::root;

const END: &str = "<!-- end of the table -->";
const RENEW: &str = "POCKETFLEET_WRITE_ISOLATION_TABLE";
const LEVELS: usize = 4;

/// Which table, and its words.
pub(super) struct Kind {
    begin: &'static str,
    title: &'static str,
    closed: &'static str,
}

/// What a hook can do to others.
pub(super) const ESCAPES: Kind =
    Kind { begin: "<!-- the escape suite writes this table -->\n", title: "a hook tries to", closed: "closed" };
/// What machine code can do to others.
pub(super) const MACHINE: Kind = Kind {
    begin: "<!-- the escape suite writes this table of machine code -->\n",
    title: "machine code tries to",
    closed: "closed",
};
/// What a hook can take.
pub(super) const GREED: Kind = Kind {
    begin: "<!-- the escape suite writes this table of greed -->\n",
    title: "a hook tries to",
    closed: "bounded",
};

/// What was tried: rows in order, and by level whether it worked.
pub(super) struct Found {
    kind: Kind,
    rows: Vec<&'static str>,
    cells: BTreeMap<(usize, u8), bool>,
}

impl Found {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, rows: Vec::new(), cells: BTreeMap::new() }
    }

    pub(super) fn note(&mut self, name: &'static str, level: u8, is_open: bool) {
        let row = self.row(name);
        self.cells.insert((row, level), is_open);
    }

    /// A row that has a place and was not tried.
    pub(super) fn row(&mut self, name: &'static str) -> usize {
        self.rows.iter().position(|row| *row == name).unwrap_or_else(|| {
            self.rows.push(name);
            self.rows.len() - 1
        })
    }

    /// Rows that were tried and worked nowhere: what is in the way may be a mistake in the attempt.
    pub(super) fn never_open(&self) -> Vec<&'static str> {
        let of =
            |number: usize| self.cells.iter().filter(move |((row, _), _)| *row == number).map(|(_, is_open)| *is_open);
        let rows = self.rows.iter().enumerate();
        rows.filter(|(number, _)| of(*number).count() > 0 && !of(*number).any(|one| one))
            .map(|(_, name)| *name)
            .collect()
    }

    /// Fails where a column that was tried is not as documented; writes those columns when asked to.
    pub(super) fn compare_with_documentation(&self) {
        let path = root().join("docs/isolation.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let begin = self.kind.begin;
        let (before, rest) = text.split_once(begin).unwrap();
        let (table, after) = rest.split_once(END).unwrap();
        let fresh = self.render(&parse(table));
        if fresh == table {
            return;
        }
        let is_asked = std::env::var_os(RENEW).is_some();
        assert!(is_asked, "docs/isolation.md says something else; look at it, then renew it with {RENEW}=1:\n{fresh}");
        std::fs::write(path, format!("{before}{begin}{fresh}{END}{after}")).unwrap();
    }

    /// What was not tried here stays as it was documented.
    fn render(&self, old: &BTreeMap<String, Vec<String>>) -> String {
        let mut text =
            format!("| {} | level 0 | level 1 | level 2 | level 3 |\n|---|---|---|---|---|\n", self.kind.title);
        for (number, name) in self.rows.iter().enumerate() {
            let cells = (0..LEVELS).map(|level| {
                let tried = u8::try_from(level).ok().and_then(|level| self.cells.get(&(number, level)));
                match tried {
                    Some(true) => "**open**".to_owned(),
                    Some(false) => self.kind.closed.to_owned(),
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
