"use strict";

// Without the standalone layout, whose top bar asks for the URL of a document.
window.ui = SwaggerUIBundle({
  url: "./docs.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // the badge is an image from another server
});
