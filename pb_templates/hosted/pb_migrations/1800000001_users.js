// The app's own visitors, who sign up and sign in here. Accounts of the fleet mean nothing in this instance.
migrate((app) => {
  const users = app.findCollectionByNameOrId("users")
  users.listRule = "id = @request.auth.id"
  users.viewRule = "id = @request.auth.id"
  // An id of one's own could be that of an account which is to have a row here one day.
  users.createRule = "@request.body.id:isset = false"
  users.updateRule = "id = @request.auth.id"
  users.deleteRule = "id = @request.auth.id"
  users.passwordAuth.enabled = true
  users.authAlert.enabled = false
  users.otp.enabled = false
  users.mfa.enabled = false
  app.save(users)
}, (app) => {
  const users = app.findCollectionByNameOrId("users")
  users.createRule = ""
  users.authAlert.enabled = true
  app.save(users)
})
