"""Texts that would run a script if a page took them for markup or for a link (after OWASP's cheat sheet and
PortSwigger's vectors); each calls ``xss()``."""

import itertools

# In a browser: scripts that ran, and what the policy of a page had to stop.
WATCH = """
window.ran = [];
window.xss = () => window.ran.push(1);
document.addEventListener('securitypolicyviolation',
  (e) => window.ran.push(`${e.violatedDirective} ${e.sample}`));
"""
# Elements that no page of ours has (drawings of reports apart), and attributes that could run something.
FOREIGN = """() => [...document.querySelectorAll('*')].flatMap((e) => {
  const tags = 'main script, main :not(defs) > style, main link, body body, base, iframe, object, embed,'
    + ' svg a, svg script, math, img, video, audio, marquee, portal, template, keygen, foreignObject';
  const runs = (a) => /^on/i.test(a.name)
    || (a.name !== 'value' && /^\\s*(javascript|data|vbscript):/i.test(a.value));
  return e.matches(tags) || [...e.attributes].some(runs) ? [e.outerHTML] : [];
})"""

EVENTS = """
onload onerror onclick onmouseover onfocus onblur onchange oninput onsubmit ontoggle onanimationstart
onanimationend ontransitionend onwheel onscroll onpointerenter onpointerdown onbeforeinput onpaste oncut
oncopy onkeydown onhashchange onpageshow onmessage onbegin onend onrepeat oncanplay onloadstart
onauxclick ondrag onformdata oninvalid oncontextmenu
"""
TAGS = "img svg body input details video marquee a div iframe select object"

PAYLOADS = [
    *(
        f"<{tag} src=x {event}=xss() autofocus tabindex=1>"
        for event, tag in zip(EVENTS.split(), itertools.cycle(TAGS.split()), strict=False)
    ),
    "<script>xss()</script>",
    "<SCRIPT>xss()</SCRIPT>",
    "<scr<script>ipt>xss()</scr</script>ipt>",
    "<script src=data:text/javascript,xss()></script>",
    "<script type=module>xss()</script>",
    "<script\x0c>xss()</script>",
    "<script/x>xss()</script >",
    "</script><script>xss()</script>",
    "</textarea><script>xss()</script>",
    "</title><script>xss()</script>",
    "</style><script>xss()</script>",
    "</noscript><script>xss()</script>",
    "</option></select><script>xss()</script>",
    "--><script>xss()</script>",
    "]]><script>xss()</script>",
    "\"><script>xss()</script>",
    "'><script>xss()</script>",
    "\"><img src=x onerror=xss()>",
    "' onmouseover='xss()",
    "\" autofocus onfocus=\"xss()",
    "` onfocus=`xss()",
    "javascript:xss()",
    "JaVaScRiPt:xss()",
    "java\tscript:xss()",
    "data:text/html,<script>xss()</script>",
    "vbscript:xss()",
    "<a href=javascript:xss()>x</a>",
    "<a href='java&#10;script:xss()'>x</a>",
    "<a href=&#106;&#97;vascript:xss()>x</a>",
    "<a href=\"\x01javascript:xss()\">x</a>",
    "<iframe src=javascript:xss()></iframe>",
    "<iframe srcdoc='<script>parent.xss()</script>'></iframe>",
    "<embed src=javascript:xss()>",
    "<object data=javascript:xss()></object>",
    "<form action=javascript:xss()><button>x</button></form>",
    "<button formaction=javascript:xss()>x</button>",
    "<base href=javascript:xss()//>",
    "<meta http-equiv=refresh content='0;url=javascript:xss()'>",
    "<link rel=stylesheet href=data:text/css,*{}>",
    "<style>@import 'javascript:xss()';</style>",
    "<div style='background:url(javascript:xss())'>x</div>",
    "<div style='animation-name:x' onanimationstart=xss()>x</div>",
    "<svg><script>xss()</script></svg>",
    "<svg><script href=data:,xss() /></svg>",
    "<svg><animate onbegin=xss() attributeName=x dur=1s>",
    "<svg><a xlink:href=javascript:xss()><text y=20>x</text></a></svg>",
    "<svg><use href='data:image/svg+xml,<svg id=x onload=xss()></svg>#x'></svg>",
    "<svg><foreignObject><iframe src=javascript:xss()></iframe></foreignObject></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=xss()></style></mglyph></table></mtext></math>",
    "<math href=javascript:xss()>x</math>",
    "<table background=javascript:xss()><tr><td>x</td></tr></table>",
    "<template><script>xss()</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=xss()>'>",
    "<xmp><p title='</xmp><img src=x onerror=xss()>'></xmp>",
    "<listing>&lt;img src=x onerror=xss()&gt;</listing>",
    "<plaintext><img src=x onerror=xss()>",
    "<portal src=javascript:xss()>",
    "<dialog open onclose=xss()><form method=dialog><button autofocus>x</button></form></dialog>",
    "<input type=image src=x onerror=xss()>",
    "<isindex type=image src=1 onerror=xss()>",
    "<audio src=x onerror=xss()></audio>",
    "<video><source onerror=xss()></video>",
    "<video poster=javascript:xss()></video>",
    "<details open ontoggle=xss()>x</details>",
    "<img src='x' onerror='&#120;ss()'>",
    "<img src=x:x onerror\x0b=xss()>",
    "<img/src=x/onerror=xss()>",
    "<img src=x onerror=\"xss()\"//",
    "<<img src=x onerror=xss()>",
    "<\x00img src=x onerror=xss()>",
    "\ufeff<img src=x onerror=xss()>",
    "\u2028<img src=x onerror=xss()>",
    "&lt;script&gt;xss()&lt;/script&gt;",
    "&#60;script&#62;xss()&#60;/script&#62;",
    "%3Cscript%3Exss()%3C/script%3E",
    "\\u003cscript\\u003exss()\\u003c/script\\u003e",
    "{{ ''.__class__.__mro__ }} {{ xss() }}",
    "{% raw %}<script>xss()</script>{% endraw %}",
    "${xss()} #{xss()} <%= xss() %>",
    "{{constructor.constructor('xss()')()}}",
    "[x](javascript:xss())",
    "[x](JAVASCRIPT:xss() 'title')",
    "[x](java&#x73;cript:xss())",
    "[x](data:text/html;base64,PHNjcmlwdD54c3MoKTwvc2NyaXB0Pg==)",
    "[x]: javascript:xss()\n\n[x]",
    "![x](x onerror=xss())",
    "![x](javascript:xss())",
    "![\"onerror=\"xss()](x)",
    "<javascript:xss()>",
    "[a](<javascript:xss()>)",
    "```html\n<script>xss()</script>\n```",
    "```\"><script>xss()</script>\nx\n```",
    "`<img src=x onerror=xss()>`",
    "> <img src=x onerror=xss()>",
    "| a | b |\n|---|---|\n| <img src=x onerror=xss()> | [x](javascript:xss()) |",
    "- <svg onload=xss()>",
    "# <script>xss()</script>",
    "<!--[if gte IE 4]><script>xss()</script><![endif]-->",
    "<![CDATA[<script>xss()</script>]]>",
    "<?xml version='1.0'?><script>xss()</script>",
    "<x onclick=xss() style=position:fixed;inset:0>x</x>",
    "<svg onload=xss()//",
    "<body onpageshow=xss()>",
    "<frameset onload=xss()>",
    "<bgsound src=javascript:xss()>",
    "<layer src=javascript:xss()></layer>",
    "<keygen autofocus onfocus=xss()>",
    "<html manifest=javascript:xss()>",
    "+ADw-script+AD4-xss()+ADw-/script+AD4-",
]  # fmt: skip
