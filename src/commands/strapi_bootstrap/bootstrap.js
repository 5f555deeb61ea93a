'use strict';

// Registers strapi-qstash as Strapi's webhook each time Strapi starts (Strapi 5 and 4). Needed with
// NODE_ENV=production: there the admin panel refuses webhooks to local and private addresses, code
// may still register one (https://github.com/strapi/strapi/issues/22177). In Strapi's environment:
//
//   STRAPI_QSTASH_WEBHOOK_URL     Where strapi-qstash listens; http://127.0.0.1:8787/webhook if not
//                                 set. If empty, this file does nothing: a webhook that it made
//                                 earlier stays, until it is deleted in the panel.
//   STRAPI_QSTASH_WEBHOOK_SECRET  The same as for strapi-qstash, if that has one.
//   STRAPI_QSTASH_WEBHOOK_EVENTS  Events to send, with commas between; all that the panel offers if
//                                 not set, and * stands for those. Also Strapi's other events, which
//                                 the panel refuses, such as *,user.create,role.update,content-type.update
//                                 (those of users hold the names and e-mail addresses of admins).
//
// QStash's token is strapi-qstash's alone. Do not give it to Strapi: whoever may see webhooks in the
// panel sees their headers, so the secret as well.
//
// Does src/index.js have code of its own? Save this as src/strapi-qstash.js, and call it from there:
//
//   const { registerQstashWebhook } = require('./strapi-qstash');
//
//   module.exports = {
//     async bootstrap({ strapi }) {
//       await registerQstashWebhook(strapi);
//       // …
//     },
//   };

// The webhook that this file looks after. Give your own another name: at each start this one gets
// the URL, the headers and the events from above. Whether it is enabled is left as it is.
const NAME = 'strapi-qstash';

const DEFAULT_URL = 'http://127.0.0.1:8787/webhook';

async function registerQstashWebhook(strapi) {
  const url = webhookUrl();
  if (url === '') {
    return;
  }
  const headers = webhookHeaders();
  const part = (name) => strapi.get?.(name) ?? strapi[name]; // Strapi 5 ?? Strapi 4
  const store = part('webhookStore');
  const runner = part('webhookRunner');

  const offered = [...store.allowedEvents.values()];
  const events = webhookEvents(offered);
  const wanted = { name: NAME, url, headers, events: events.filter((event) => offered.includes(event)) };

  const findOurs = async () => {
    const webhooks = await store.findWebhooks();
    return webhooks.filter(({ name }) => name === NAME).sort((a, b) => Number(a.id) - Number(b.id));
  };
  const found = (await findOurs())[0] ?? (await store.createWebhook({ ...wanted, isEnabled: true }));
  // Looked up once more: of two Strapis that start on one database both may have created it. Both
  // keep the oldest.
  const [oldest = found, ...doubles] = await findOurs();
  for (const double of doubles) {
    await store.deleteWebhook(double.id);
    runner.remove(double);
  }
  const keys = Object.keys(wanted);
  const differs = keys.some((key) => JSON.stringify(oldest[key]) !== JSON.stringify(wanted[key]));
  const updated = differs ? await store.updateWebhook(oldest.id, { ...oldest, ...wanted }) : null;
  const webhook = updated ?? oldest;
  // Strapi read its webhooks before it called this, so what is new works only once the runner has it.
  runner.update(webhook);

  // An event that the panel does not offer must not be in the database, where it would make Strapi
  // refuse each later change of the webhook. The runner takes it, under an id that no row has. So
  // when the panel disables or deletes the webhook, these events end with the next start.
  const others = events.filter((event) => !offered.includes(event));
  if (others.length > 0) {
    runner.update({ ...webhook, id: `${NAME}:others`, events: others });
  }

  const tell = (text) => strapi.log.warn(`strapi-qstash: ${text}`);
  if (webhook.isEnabled) {
    strapi.log.info(`strapi-qstash: ${events.join(', ')} go to ${url}`);
  } else {
    tell(`the webhook "${NAME}" is disabled, so Strapi sends nothing`);
  }
  for (const other of await store.findWebhooks()) {
    if (other.name !== NAME && other.url === url && other.isEnabled) {
      tell(`the webhook "${other.name}" has the same URL, so events arrive twice: delete it in the panel`);
    }
  }
}

// Strapi does not log a webhook that it could not send. So a setting that can never work stops it here.
function webhookUrl() {
  const url = (process.env.STRAPI_QSTASH_WEBHOOK_URL ?? DEFAULT_URL).trim();
  if (url !== '' && !/^https?:\/\/[^\s/@]+\/\S+$/.test(url)) {
    throw new Error(`STRAPI_QSTASH_WEBHOOK_URL must be an address with a path, such as ${DEFAULT_URL}`);
  }
  return url;
}

function webhookHeaders() {
  // Spaces, quotes and `Bearer` around it are left out, as strapi-qstash does with its own.
  const pasted = (process.env.STRAPI_QSTASH_WEBHOOK_SECRET ?? '').trim();
  const secret = pasted.replace(/^(["'])(.*)\1$/, '$2').replace(/^\s*bearer\s/i, '').trim();
  if (!/^[\x20-\x7e]*$/.test(secret)) {
    throw new Error('STRAPI_QSTASH_WEBHOOK_SECRET has characters that a header cannot carry: use letters and digits');
  }
  return secret === '' ? {} : { Authorization: `Bearer ${secret}` };
}

function webhookEvents(offered) {
  const names = (process.env.STRAPI_QSTASH_WEBHOOK_EVENTS ?? '').split(',').map((name) => name.trim());
  const events = names.filter((name) => name !== '').flatMap((name) => (name === '*' ? offered : [name]));
  return events.length === 0 ? offered : [...new Set(events)];
}

module.exports = {
  async bootstrap({ strapi }) {
    await registerQstashWebhook(strapi);
  },
};
// Not enumerable, since Strapi refuses to start with keys in src/index.js that it does not know.
Object.defineProperty(module.exports, 'registerQstashWebhook', { value: registerQstashWebhook });
