// The accounts. Every rule here is the last line of defence: the gateway forwards an account's own calls as they are.
migrate((app) => {
  const users = app.findCollectionByNameOrId("users")

  // A role is given by operators only. An account that signed up has none, which everywhere means "user".
  users.fields.add(new SelectField({
    name: "role",
    maxSelect: 1,
    values: ["user", "moderator", "admin", "guest"],
  }))

  users.listRule = "id = @request.auth.id"
  users.viewRule = "id = @request.auth.id"
  // The id names the account's instance as well. Chosen by the caller, it could name the one a deleted account left.
  users.createRule = "@request.body.role:isset = false && @request.body.id:isset = false"
  users.updateRule = "id = @request.auth.id && @request.body.role:isset = false"
  users.deleteRule = null

  // One person, one account: addresses differ by more than their letters' case.
  users.indexes = [
    "CREATE UNIQUE INDEX `idx_tokenKey__pb_users_auth_` ON `users` (`tokenKey`)",
    "CREATE UNIQUE INDEX `idx_email__pb_users_auth_` ON `users` (`email` COLLATE NOCASE) WHERE `email` != ''",
  ]

  users.authToken.duration = 432000 // 5 days
  users.authAlert.enabled = false
  users.otp.enabled = false
  users.mfa.enabled = false
  app.save(users)
}, (app) => {
  const users = app.findCollectionByNameOrId("users")
  users.fields.removeByName("role")
  users.createRule = ""
  users.updateRule = "id = @request.auth.id"
  users.deleteRule = "id = @request.auth.id"
  users.authAlert.enabled = true
  app.save(users)
})
