"use strict";
const place = document.getElementById("swagger-ui");
window.ui = SwaggerUIBundle({
  url: new URL(place.dataset.openapi, document.baseURI).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  // No address of somebody else's: nothing is sent to a public validator.
  validatorUrl: null,
});
