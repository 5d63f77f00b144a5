// Each member has a row with the id of their account and the role they have in the workspace; both are kept in step
// from outside. Accounts are managed in the global instance: here nobody signs in by password, and nobody signs up.
migrate((app) => {
  const users = app.findCollectionByNameOrId("users")

  // What @request.auth.member_role is in the rules of all collections. Empty for one who is no member any more.
  users.fields.add(new SelectField({
    name: "member_role",
    maxSelect: 1,
    values: ["owner", "admin", "member", "guest"],
  }))

  // Members see each other. Rows of former members stay, because records refer to them.
  users.listRule = "@request.auth.member_role != ''"
  users.viewRule = "@request.auth.member_role != ''"
  users.createRule = null
  users.updateRule = null
  users.deleteRule = null
  users.passwordAuth.enabled = false
  users.authAlert.enabled = false
  users.otp.enabled = false
  users.mfa.enabled = false
  app.save(users)
}, (app) => {
  const users = app.findCollectionByNameOrId("users")
  users.fields.removeByName("member_role")
  users.listRule = "id = @request.auth.id"
  users.viewRule = "id = @request.auth.id"
  users.createRule = ""
  users.updateRule = "id = @request.auth.id"
  users.deleteRule = "id = @request.auth.id"
  users.passwordAuth.enabled = true
  users.authAlert.enabled = true
  app.save(users)
})
