// The app opened this window and goes on by itself.
window.close();
