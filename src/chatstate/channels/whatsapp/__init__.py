"""WhatsApp, by Meta's Cloud API.

webhook  what Meta posts: whether Meta has sent it, and what it says
render   a reply as messages that WhatsApp can show, and these as bodies of requests
cloud    sends them, and fetches files

People are known by up to three names (kinds of `ExternalId`): "bsuid", which names them to this business and is new
after a change of the number; "wa_id", the number, which WhatsApp withholds from 2026 on when somebody has a username;
"parent", which names them to several businesses of one owner. Each may be absent.
"""

from __future__ import annotations
