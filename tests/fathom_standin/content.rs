//! Meetings that look like meetings: the same for the same key and number, dated back from now.

use serde_json::Value;
use serde_json::json;
use time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What a meeting is about: titles, points that are made, things to do.
struct Theme {
    titles: [&'static str; 3],
    points: [&'static str; 5],
    actions: [&'static str; 3],
}

const THEMES: [Theme; 9] = [
    Theme {
        titles: ["Quarterly Business Review", "Renewal call with Northwind", "Account plan: Contoso"],
        points: [
            "usage grew by eighteen percent since the last review, mostly from the two new regions",
            "the renewal is due in six weeks and procurement wants the security questionnaire first",
            "their admins still export reports by hand, which the scheduled export would solve",
            "support answers in under four hours now, down from eleven in spring",
            "they asked for a price for two hundred further seats",
        ],
        actions: [
            "Send the revised proposal with the price for 200 seats",
            "Return the security questionnaire",
            "Set up a pilot of the scheduled export",
        ],
    },
    Theme {
        titles: ["Weekly product sync", "Roadmap planning", "Backlog grooming"],
        points: [
            "search is the most requested feature for the third week in a row",
            "the import wizard loses people at the column mapping step",
            "we can ship the dark theme behind a flag without touching the release train",
            "mobile needs one more sprint before the beta",
            "the metrics board shows activation flat and retention slightly up",
        ],
        actions: [
            "Write the brief for full-text search",
            "Sketch a shorter column mapping",
            "Invite twenty customers to the mobile beta",
        ],
    },
    Theme {
        titles: ["Incident review: slow checkouts", "Post-mortem: expired certificate", "Reliability weekly"],
        points: [
            "the first alert came eleven minutes after customers noticed",
            "a missing index turned one query into a full scan under load",
            "the rollback itself took ninety seconds and worked as written",
            "nobody was sure who may declare an incident at night",
            "the status page was updated late because two people thought the other had done it",
        ],
        actions: [
            "Alert on the ninety-ninth percentile instead of the mean",
            "Name one person per shift who updates the status page",
            "Add the missing index to the migration checklist",
        ],
    },
    Theme {
        titles: ["Design critique: onboarding", "Usability session 4", "Design system office hours"],
        points: [
            "four of five people skipped the welcome video",
            "the empty state should show an example instead of an explanation",
            "contrast of the secondary buttons is below what we promise",
            "people look for settings behind their own picture",
            "the progress bar makes the three steps feel shorter",
        ],
        actions: [
            "Replace the welcome video by an example project",
            "Raise the contrast of secondary buttons",
            "Test the progress bar with five new people",
        ],
    },
    Theme {
        titles: ["Candidate interview: backend engineer", "Hiring panel debrief", "Recruiting sync"],
        points: [
            "the take-home was solved with tests and a clear note on what was left out",
            "the conversation about queues went deep and stayed concrete",
            "we should say earlier that the role includes on-call",
            "two further candidates are in the last round",
            "the offer has to go out before the end of the week",
        ],
        actions: ["Collect the written feedback", "Prepare the offer", "Mention on-call in the job description"],
    },
    Theme {
        titles: ["Discovery call: Fabrikam", "Demo for Adventure Works", "Sales pipeline review"],
        points: [
            "they record about three hundred calls a month and keep none of them",
            "their legal team needs recordings deleted after ninety days",
            "single sign-on is a must, audit logs would be nice",
            "the decision is made by operations, not by sales",
            "they compare us with two others and decide next month",
        ],
        actions: [
            "Send the note on retention and deletion",
            "Invite their operations lead to the next call",
            "Prepare a trial with single sign-on",
        ],
    },
    Theme {
        titles: ["Marketing stand-up", "Launch plan: autumn release", "Content calendar"],
        points: [
            "the comparison page brings half of all sign-ups",
            "the newsletter goes to nine thousand people with a third opening it",
            "the launch video needs captions in three languages",
            "we have two customer stories ready and one in review",
            "the webinar clashes with a public holiday",
        ],
        actions: ["Move the webinar by a week", "Order the captions", "Publish the first customer story"],
    },
    Theme {
        titles: ["One-to-one with Priya", "Career conversation", "Team retrospective"],
        points: [
            "reviews wait too long on Fridays",
            "pairing on the migration was the best part of the sprint",
            "the on-call week was quiet for the first time",
            "there should be one place that says what is decided",
            "people want a day without meetings",
        ],
        actions: ["Keep Wednesdays free of meetings", "Start a page of decisions", "Agree on a time limit for reviews"],
    },
    Theme {
        titles: ["Board preparation", "Budget for next year", "Finance monthly close"],
        points: [
            "revenue is two percent above plan and costs are on plan",
            "cloud spending grew slower than usage for the first time",
            "we want to hire six people, four of them in engineering",
            "the largest risk is one customer with a tenth of the revenue",
            "the audit starts in three weeks",
        ],
        actions: ["Finish the slides on risks", "Confirm the hiring plan", "Send the auditors the list of contracts"],
    },
];

const PEOPLE: [(&str, &str, bool); 9] = [
    ("Alice Johnson", "alice", false),
    ("Bruno Costa", "bruno", false),
    ("Chen Wei", "chen", false),
    ("Dalia Haddad", "dalia", false),
    ("Erik Lindqvist", "erik", false),
    ("Priya Raman", "priya", false),
    ("Sam Okafor", "sam", true),
    ("Tomás Herrera", "tomas", true),
    ("Yuki Tanaka", "yuki", true),
];
const SHARES: [&str; 3] = ["no_teams", "single_team", "all_teams"];
const TEAMS: [&str; 3] = ["Sales", "Product", "Engineering"];
const TYPES: [&str; 3] = ["Customer call", "Internal", "Interview"];
const REACTIONS: [&str; 8] = [
    "That matches what I see.",
    "Do we have numbers for that?",
    "I would not have guessed that.",
    "Let's write that down.",
    "Who could own this?",
    "Can we decide that today?",
    "Makes sense to me.",
    "One question before we go on: since when?",
];

/// One made-up meeting: when it was made known, and its whole content.
pub(crate) struct Made {
    pub(crate) created_at: OffsetDateTime,
    pub(crate) value: Value,
}

fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(0)
}

fn stamp(seconds: usize) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

pub(crate) fn rfc3339(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

fn email(person: &(&str, &str, bool)) -> (String, &'static str) {
    let domain = if person.2 { "northwind.example" } else { "acme.example" };
    (format!("{}@{domain}", person.1), domain)
}

fn theme_of(n: usize) -> (&'static Theme, &'static str) {
    let theme = &THEMES[n % THEMES.len()];
    (theme, theme.titles[n / THEMES.len() % theme.titles.len()])
}

/// The person whose meetings a key shows.
fn owner(seed: usize) -> &'static (&'static str, &'static str, bool) {
    &PEOPLE[seed % 6]
}

/// The `n`th meeting (0 = newest) of the `seed`th key, which ended as long before `now` as its place in the list says.
pub(crate) fn meeting(seed: usize, n: usize, recording_id: u64, now: OffsetDateTime) -> Made {
    let mix = seed * 31 + n * 7;
    let minutes = [25, 30, 45, 50, 60, 15][mix % 6];
    let back = Duration::hours(whole(n) * 29 + 3) + Duration::minutes(whole(mix % 40));
    finished(seed, n, recording_id, now - back, minutes)
}

/// A meeting that ends now.
pub(crate) fn fresh(seed: usize, n: usize, recording_id: u64, now: OffsetDateTime) -> Made {
    finished(seed, n, recording_id, now - Duration::seconds(1), 30)
}

fn finished(seed: usize, n: usize, recording_id: u64, created_at: OffsetDateTime, minutes: i64) -> Made {
    let mix = seed * 31 + n * 7;
    let (theme, title) = theme_of(n + seed);
    let title =
        if n < THEMES.len() * 3 { title.to_owned() } else { format!("{title} ({})", n / (THEMES.len() * 3) + 1) };
    let owner = owner(seed);
    let mut present = vec![owner];
    present.extend((1..=2 + mix % 3).map(|step| &PEOPLE[(seed + mix + step * 2) % PEOPLE.len()]));
    present.sort_by_key(|person| (person.0 != owner.0, person.0));
    present.dedup_by_key(|person| person.0);
    let is_external = present.iter().any(|person| person.2);
    let ended = created_at - Duration::seconds(95);
    let started = ended - Duration::minutes(minutes) + Duration::seconds(whole(mix % 50));
    let scheduled = started - Duration::seconds(72);
    let (owner_email, owner_domain) = email(owner);
    let slug = format!("{:x}", recording_id.wrapping_mul(2_654_435_761));
    let invitees: Vec<Value> = present
        .iter()
        .map(|person| {
            let (email, domain) = email(person);
            json!({ "name": person.0, "email": email, "email_domain": domain, "is_external": person.2,
                "matched_speaker_display_name": person.0 })
        })
        .collect();
    let value = json!({
        "title": title, "meeting_title": title, "meeting_type": TYPES[usize::from(!is_external)],
        "recording_id": recording_id,
        "url": format!("https://fathom.video/calls/{}", recording_id / 3),
        "meeting_url": format!("https://meet.example/{slug}"),
        "share_url": format!("https://fathom.video/share/{slug}"),
        "created_at": rfc3339(created_at),
        "scheduled_start_time": rfc3339(scheduled),
        "scheduled_end_time": rfc3339(scheduled + Duration::minutes(minutes)),
        "recording_start_time": rfc3339(started), "recording_end_time": rfc3339(ended),
        "calendar_invitees_domains_type": if is_external { "one_or_more_external" } else { "only_internal" },
        "shared_with": SHARES[mix % 3],
        "transcript_language": "en",
        "calendar_invitees": invitees,
        "recorded_by": { "name": owner.0, "email": owner_email, "email_domain": owner_domain, "team": TEAMS[seed % 3] },
        "transcript": transcript(theme, &present, mix, usize::try_from(minutes).unwrap_or(30) * 60),
        "default_summary": summary(theme, &title, &present),
        "action_items": actions(theme, &present, &slug, mix),
        "highlights": [{ "type": "Next steps", "summary": theme.actions[0], "start_time": 610.5, "end_time": 642.0 }],
        "crm_matches": { "contacts": [], "companies": if is_external {
            json!([{ "name": "Northwind", "record_url": "https://crm.example/companies/17" }]) } else { json!([]) },
            "deals": [], "error": null },
    });
    Made { created_at, value }
}

fn transcript(theme: &Theme, present: &[&(&str, &str, bool)], mix: usize, seconds: usize) -> Vec<Value> {
    let mut said: Vec<(usize, String)> = vec![
        (0, "Thanks for joining, everybody. I have started the recording.".to_owned()),
        (1, "Hi! I can hear you well.".to_owned()),
        (0, "Good. We have a few points, so let's begin.".to_owned()),
    ];
    for (at, point) in theme.points.iter().enumerate() {
        let speaker = at + 1 + mix % 3;
        let mut letters = point.chars();
        let first: String = letters.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
        said.push((speaker, format!("{first}{}.", letters.as_str())));
        said.push((speaker + 1, REACTIONS[(mix + at * 3) % REACTIONS.len()].to_owned()));
        said.push((speaker, "Yes. I will put the details into the notes, with the figures.".to_owned()));
        said.push((0, REACTIONS[(mix + at * 5 + 2) % REACTIONS.len()].to_owned()));
    }
    for (at, action) in theme.actions.iter().enumerate() {
        said.push((0, format!("Then there is one thing to do: {}.", action.to_lowercase())));
        said.push((at + 1, "I can take that one, until Friday.".to_owned()));
    }
    said.push((0, "That was all from my side. Thank you, and see you next time!".to_owned()));
    said.push((1, "Bye!".to_owned()));
    let step = seconds.saturating_sub(20) / said.len();
    said.into_iter()
        .enumerate()
        .map(|(at, (speaker, text))| {
            let person = present[speaker % present.len()];
            json!({ "speaker": { "display_name": person.0, "matched_calendar_invitee_email": email(person).0 },
                "text": text, "timestamp": stamp(5 + at * step) })
        })
        .collect()
}

fn summary(theme: &Theme, title: &str, present: &[&(&str, &str, bool)]) -> Value {
    let names: Vec<&str> = present.iter().map(|person| person.0).collect();
    let list = |items: &[&str]| items.iter().flat_map(|item| ["- ", item, "\n"]).collect::<String>();
    let text = format!(
        "## {title}\n\nPresent: {}.\n\n### Key takeaways\n\n{}\n### Discussed\n\n{}\n### Next steps\n\n{}",
        names.join(", "),
        list(&theme.points[..2]),
        list(&theme.points[2..]),
        list(&theme.actions),
    );
    json!({ "template_name": "general", "markdown_formatted": text })
}

fn actions(theme: &Theme, present: &[&(&str, &str, bool)], slug: &str, mix: usize) -> Vec<Value> {
    theme
        .actions
        .iter()
        .enumerate()
        .map(|(at, action)| {
            let seconds = 610 + at * 95;
            let person = present[(at + 1) % present.len()];
            json!({ "description": action, "user_generated": (mix + at).is_multiple_of(4), "completed": (mix + at).is_multiple_of(3),
                "recording_timestamp": stamp(seconds),
                "recording_playback_url": format!("https://fathom.video/share/{slug}?timestamp={seconds}"),
                "assignee": { "name": person.0, "email": email(person).0, "team": TEAMS[(mix + at) % 3] } })
        })
        .collect()
}

/// The lists of the organisation: teams, members, types, users.
pub(crate) fn organisation(list: &str, team: Option<&str>) -> Vec<Value> {
    let since = "2023-11-10T12:00:00Z";
    let staff = || PEOPLE.iter().filter(|person| !person.2).enumerate();
    match list {
        "teams" => TEAMS.iter().map(|name| json!({ "name": name, "created_at": since })).collect(),
        "meeting_types" => {
            TYPES.iter().map(|name| json!({ "name": name, "status": "active", "created_at": since })).collect()
        }
        "team_members" => staff()
            .filter(|(at, _)| team.is_none_or(|team| TEAMS[at % 3] == team))
            .map(|(_, person)| json!({ "name": person.0, "email": email(person).0, "created_at": since }))
            .collect(),
        _ => staff()
            .filter(|(at, _)| team.is_none_or(|team| TEAMS[at % 3] == team))
            .map(|(at, person)| {
                let level = if at == 0 { "account_admin" } else { "none" };
                json!({ "name": person.0, "email": email(person).0, "created_at": since, "status": "active",
                    "permissions": { "settings_access": { "level": level, "teams": [] },
                        "view_access": { "level": "all_teams", "teams": [TEAMS[at % 3]] } } })
            })
            .collect(),
    }
}
