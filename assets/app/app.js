// Everything here is a comfort: each form and link works without it.
import { dress, enhance } from './forms.js';
import { listen } from './live.js';

enhance();
dress(document);
if (document.body.hasAttribute('data-signed-in')) listen();
