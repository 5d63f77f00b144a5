// A record hook: every entry gets a readable slug.
onRecordCreateRequest((e) => {
  const words = e.record.getString("message").toLowerCase().match(/[a-z0-9]+/g) || []
  e.record.set("slug", words.slice(0, 8).join("-"))
  e.next()
}, "entries")

// A route of the app's own. It has to be listed in `routes` of template.toml.
routerAdd("GET", "/api/guestbook/count", (e) => {
  return e.json(200, { count: $app.countRecords("entries") })
}, $apis.requireAuth())
