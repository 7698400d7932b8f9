"""What the model says of itself: that it declines, is sorry, does not know, or has a limit.

Each sign is a structure (who speaks, how it is negated, which act) rather than a list of whole phrases. Sentences are
lower case, with straight quotation marks (`reading.read`).
"""

import re

_ACT = (
    r"(?:assist|help|aid|fulfil+|fulfill|provide|comply|answer|give|offer|create|write|generate|support|engage|"
    r"participate|"
    r"satisfy|discuss|share|recommend|encourage|condone|promote|suggest|advise|endorse|agree|respond|reply|"
    r"complete|produce|"
    r"tell|teach|show|explain|facilitate|guide|instruct|continue|entertain|contribute|disclose|reveal|access|"
    r"retrieve|browse|"
    r"look up|confirm|verify|comment|speculate|list|describe|proceed|allow|direct|advocate|justify|perform|"
    r"carry out|execute|"
    r"translate|find|determine|identify|locate|supply|present|make|be (?:a )?part|be involved|take part|do|"
    r"go along|accommodate|"
    r"tolerate|approve|accept|compose|draft|craft|go into|cooperate|collaborate|act|grant|process|handle|address|"
    r"see|view|open|know|"
    r"ethically|"
    r"legally|"
    r"morally|responsibly|in good (?:conscience|faith))"
)
_SELF = r"(?:i|we|this (?:assistant|model|ai|chatbot|system)|(?:as )?an ai(?: language model| assistant)?)"
_ADVERBS = (
    r"(?:(?:,? ?(?:simply|just|really|also|therefore|personally|ethically|legally|morally|unfortunately|"
    r"absolutely|definitely|"
    r"however|currently|directly|actually|still|certainly|even|never|ever|knowingly|physically|honestly|and|or|"
    r"nor|but|"
    r"respectfully|politely|kindly|regretfully|must|as an ai[^,.;]{0,40},|under any circumstances,?|"
    r"in good conscience,?|"
    r"to|safely|possibly|specifically)\b,?) ?){0,6}"
)
_CANNOT = (
    r"(?:can ?not|can't|cant|could(?: not|n't)|will not|won't|would(?: not|n't)|must not|mustn't|should(?: not|"
    r"n't)|may not|"
    r"shall not|(?:am|are|'m|'re|is) (?:simply |just |also |currently |really |still )*(?:unable|not (?:able|"
    r"allowed|permitted|"
    r"programmed|designed|authori[sz]ed|equipped|meant|supposed|intended|going|willing|capable|comfortable|"
    r"in a position|here|"
    r"qualified|made|built))|not able|unable|refuse|decline|(?:do not|don't)(?: (?:wish|want|intend) to)?)"
)
DECLINES = re.compile(
    # I cannot help
    rf"\b{_SELF} ?{_ADVERBS}{_CANNOT}(?: (?:and|or|nor) (?:will not|won't|should not|shouldn't|"
    rf"cannot|can't|would not))?(?: to| of| with)? ?{_ADVERBS}(?:to |of |for )?{_ACT}(?:ing)?\b"
    r"(?! (?:your|the|any)? ?[^.]{0,30}\benough\b| but\b| an? (?:damn|shit|fuck|hoot|crap|rat's)\b|"
    r"[^.;,]{0,50} (?:without (?:more|knowing|further|additional|"
    r"context|the|some)|unless i know|until i know)\b)"
    # ... with the verb in -ing or left out
    rf"|\b{_SELF} ?{_ADVERBS}(?:am|'m|are)(?: simply| just)? (?:not comfortable|unable to|not able to|"
    r"not allowed to|not going to|"
    r"not programmed|not permitted)\b"
    r"|\bi (?:just |simply |really )?(?:cannot|can't|can not|won't|will not)(?: and (?:will not|won't|cannot|"
    r"shouldn't))?(?:[.!,;:]|$)"
    # elliptical: "Can't help with that."
    r"|^(?:sorry[,.!]? )?(?:(?:can't|cannot|unable to|not able to|won't|will not|"
    rf"no can do)) ?{_ADVERBS}(?:{_ACT}\b|$)"
    r"|^no can do\b|^no way\b|\blet's (?:not|refrain)\b|"
    r"\bi(?:'ve|'m| am| have)? ?(?:have|need|got|going|gotta) ?(?:to|ta)? stop you\b|"
    r"\bi only (?:help|"
    r"assist|discuss|answer)\b"
    r"|\bi must stop you\b"
    # casual
    r"|^(?:(?:nope|no|nah|sorry|yeah)[,.!]? )*(?:i'm )?not (?:going there|doing (?:that|this|it)\b|touching)|"
    r"^(?:that's a )?hard (?:pass|no)\b"
    r"|\b(?:i|we)(?:'m|'ll|'ve|'re|'d)? (?:\w+ ){0,2}?(?:have|need|got|going|gonna|gotta|must)(?: ?to|"
    r" ?ta)?(?: have to)? "
    r"say no to (?:that|this|you|your)\b"
    r"|\bmy answer (?:to (?:that|this|you) )?(?:is|remains|has to be|must be) (?:an? )?(?:\w+ )?no\b"
    r"|\byou (?:won't|will not|aren't going to|are not going to) (?:get|find|hear)\b[^.]{0,40}\bfrom me\b"
    r"|\b(?:i|i'm|i'll|i have to|i must) (?:will )?draw(?:ing)? (?:the|a) line\b|\bcount me out\b"
    r"|^(?:\w+[,.!] )*(?:that|this|it|(?:help|assist)\w*\b[^.,]{0,60})(?: would be|'s| is) (?:\w+ )?"
    r"out of the question\b"
    r"|\b(?:let's|let us|can we|we should|i'd rather we|i'd rather) (?:talk about|discuss|"
    r"move on to) something else\b|\b(?:let's|let us|can we) change the (?:subject|topic)\b"
    r"|\bi(?:'d| would) (?:rather|prefer to) (?:talk about|discuss|focus on)\b"
    r"|\bi(?:'m| am) not sure (?:that |if |whether )?i (?:can|could|should) (?:help|assist|answer|tell|give|provide)\b"
    r"|\bi(?:'m| am)\b[^.]{0,80} not (?:here )?to help you (?:with|do)\b"
    # in character
    r"|\b(?:i|we) (?:won't|will not|am not|ain't|'m not)(?: going to)? be (?:\w+ly )?(?:giving|helping|providing|"
    r"assisting|"
    r"sharing|telling|teaching|answering|discussing)\b|^(?!if\b|when\b)[^.]{0,60}\bcome to the wrong (?:place|"
    r"person|guy|coach|\w+)\b"
    r"|^(?:\w+, |please |so |just |you'd better |you had better |better )*(?:go )?(?:and )?"
    r"(?:(?:ask|find|bother)(?: yourself)? (?:someone|somebody) else(?: (?:for|with|about) (?:that|this|"
    r"it))?(?=[.!]*$)|"
    r"find yourself (?:someone|somebody) else\b(?! to\b))|\bi(?:'m not|"
    r" ain't) (?:your (?:guy|man)|"
    r"here to help(?: you)? (?:with|do))\b"
    # refusing by name
    r"|\b(?:i|we)(?:'ll| will| must| have| need| would|'d| am| 'm|'m)?(?: going| having| afraid)?(?: to| have to|"
    r" need to| rather| prefer)*"
    r"(?: respectfully| politely| kindly| firmly| therefore)* (?:decline|refuse|pass on|abstain|refrain)\b"
    r"|\b(?:i'd|i would) (?:rather|prefer) not\b|\bi(?:'ll| will)(?: have to)? pass on\b"
    r"|\b(?:i|we)(?:'m|'ll|'re|'ve)? (?:\w+ ){0,3}?(?:have|need|going) to (?:respectfully |politely )?(?:decline|"
    r"refuse)\b"
    r"|\b(?:i|we)(?:'ll)? (?:must |have to |need to |will |\w+ly )*reject (?:the|this|that|your|any|such) (?:\w+ )?"
    r"(?:request|prompt|task)s?\b"
    # against rules
    r"|\b(?:against|outside|beyond|not within|isn't within|not in line with|not in|violat\w+|not part of|"
    r"contrary to|conflicts? with|"
    r"not consistent with|not aligned with|prohibited by) "
    r"(?:of )?(?:my|our|openai'?s?) (?:\w+ ){0,4}(?:programming|guidelines?|principles|polic(?:y|ies)|rules|"
    r"values|scope|purpose|"
    r"capabilit\w+|terms|standards|use case|design|abilit\w+|training|instructions|code|ethics|role|guardrails)\b"
    r"|\bmy (?:\w+ ){0,3}(?:programming|guidelines|principles|policy|policies|rules|values|design|"
    r"safety \w+) (?:\w+ ){0,2}"
    r"(?:prevents?|prohibits?|forbids?|do(?:es)? not|don't|doesn't|won't)\b"
    r"|\b(?:this|that|your|the) (?:request|question|prompt|query|topic) (?:\w+ ){0,3}(?:violates?|goes against|"
    r"is against|(?:cannot|can't)(?! be (?!(?:answered|fulfilled|completed|granted|met|honou?red|complied)\b))|"
    r"is (?:not (?:something|one)|inappropriate|unethical|illegal|harmful|problematic|off[- ]limits))\b"
    # nothing for you here
    r"|\b(?:is|it's|that's|be) (?:not |n't )?(?:something|one|a request|a topic|a question) (?:that |which )?(?:i|"
    r"we) "
    r"(?:can't|cannot|won't|will not|am unable|'m unable|refuse|am not able|don't|do not)\b"
    r"|\b(?:not|isn't) (?:something|one|a request|a topic|a question) (?:that |which )?(?:i|we)(?: can| will|"
    r"'m able| am able|'m going|"
    r"'d|'ll| would| am willing|'m comfortable| am comfortable|'m doing|'m touching)\b"
    r"|\b(?:it (?:is|would be|'s)|it's) (?:\w+ )?(?:not (?:possible|appropriate|ethical|right)|impossible|"
    r"inappropriate|unethical) "
    r"(?:or \w+ )?for me to\b"
    r"|^(?:\w+[,.!] )*(?:(?:sorry|no),? )?(?:(?:that|this|it)(?:'s| is)|(?:this|that|your|such) (?:request|topic|"
    r"subject|question|"
    r"\w+ing)s? (?:is|are)|(?:that|this) kind of [\w ]{1,30} is) (?:\w+ )?off[- ]limits\b(?! (?:to|for) (?!me\b))|"
    r"\b(?:no one|nobody) (?:should|can) help you (?:do|with) (?:that|this)\b"
    r"|^(?:\w+[,.!] )*(?:(?:that|this|it)(?:'s| is) (?:\w+ )?not (?:going to|gonna) happen|not (?:going to|"
    r"gonna) (?:happen|"
    r"help|do|assist|answer))\b"
    r"(?! (?:over|in|by|until|if|unless|without|much|here|overnight)\b)|\b(?:that|it|this) ain't (?:going to|"
    r"gonna) happen\b"
    r"|\bi(?:'m| am) (?:\w+ )?not gonna\b"
    # a duty that excludes it: "I must adhere to guidelines and cannot provide ..."
    rf"|\b(?:i|we) (?:must|have to|need to|(?:am|'m|are) (?:programmed|designed|required|bound|obliged|"
    rf"obligated|committed|dedicated|here)) [^.;:]{{1,100}}?\b(?:and|so|thus|therefore|which means)"
    rf"(?: that)?(?: i)?(?: therefore| thus| hence| as such)? ?{_CANNOT}(?: to)? {_ADVERBS}(?:to )?{_ACT}\b"
    r"|\b(?:(?:provid|help|assist|answer|shar|writ|giv|creat|discuss|promot|support|engag|encourag|generat|request|"
    r"question)\w*|doing (?:so|this|that))\b[^.]{0,120}\b(?:is|are|goes|would be|'s|runs) against (?:these|those|"
    r"such|ethical) "
    r"(?:\w+ ){0,2}(?:principles|guidelines|polic(?:y|ies)|rules|values)\b"
    r"|\bi (?:do not|don't) (?:have the ability|feel comfortable|think it is (?:appropriate|ethical|"
    r"right) (?:for me )?to (?:provide|discuss|answer))\b"
)
"""The model, in its own person, does not do what it was asked."""

BLUNT = re.compile(
    r"no way|(?:\w+[,.!] )*(?:that|this|it)(?: would be|'s| is) (?:\w+ )?(?:out of the question|off[- ]limits)|"
    r"(?:\w+[,.!] )*(?:(?:that|this|it)(?:'s| is) )?(?:\w+ )?not (?:going to|gonna) happen|.*\belse\b.*"
)
"""Of what `DECLINES` finds, what answers a question too."""

BARRED = re.compile(
    r"\b(?:is|are|remains?|stays?) (?:\w+ )?(?:off[- ]limits|out of the question)\b|"
    r"\b(?:is|are|goes|'s|runs) against (?:these|those|such|ethical) (?:\w+ ){0,2}"
    r"(?:principles|guidelines|polic(?:y|ies)|rules|values)\b"
)
"""Said of an act that nobody is to do, it declines to tell how; a roof may be off limits too."""

CAVEATS = re.compile(
    r"\b(?:legal|medical|financial|professional|tax|investment|psychological) (?:advice|opinion|guidance)\b|"
    r"\bi(?:'m| am) not (?:a|your) "
    r"(?:lawyer|doctor|attorney|physician|therapist)\b"
    r"|\b(?:definitive|complete|single|exact|precise|specific|one-size-fits-all|real-time|up-to-date|"
    r"personali[sz]ed|comprehensive|exhaustive|particular|"
    r"simple|straightforward) (?:answer|list|figure|number|date|information|response|recommendation|brand|product|"
    r"place|location|restaurant|model|name|price|time|example|address|shop|store)s?\b"
    r"|\b(?:personal|own|any|have) (?:have )?(?:opinions?|beliefs?|feelings?|emotions?|experiences?|preferences?|"
    r"political (?:views|opinions)|"
    r"views|consciousness|a body|physical body|favou?rites?)\b|\bguarantee\b|\bin mind\b|\bpredict\b|\bfeel\b|"
    r"\bexperience\b"
)
"""Limits that often come with a full answer: they decline only where no answer follows."""

ENDORSES_NOT = re.compile(
    r"(?:\b(?:not|cannot|never|nor|strongly|would)|n't) (?:\w+ ){0,2}(?:condone|endorse|encourage|support|promote|"
    r"advocate|recommend|"
    r"discourage|advise)\b"
)
"""It keeps its distance from the act, which is a caution where the act has been told."""

NO_OPINIONS = re.compile(
    r"\b(?:cannot|can't|can not|unable to|not able to|do not|don't|does not|doesn't|won't|will not|not (?:appropriate|"
    r"possible) for me to|"
    r"not programmed to) (?:\w+ ){0,2}(?:(?:provide|offer|give|express|have|share|make|hold|take|state|form|"
    r"draw)\b[^.,;]{0,40}"
    r"\b(?:opinions?|assumptions?|generali[sz]ations?|judge?ments?|sides?|speculations?|stance|claims|decisions?|"
    r"biase?s?|"
    r"conclusions?)|generali[sz]e|assume|speculate|speak (?:for|on behalf)|judge|stereotype)\b"
)
"""The model has no view, will not generalise or guess: a caveat where what is known comes next."""

NO_VIEWS = re.compile(
    r"\b(?:do not|don't|cannot|can't|does not) (?:have|hold|possess|express|form) (?:\w+ ){0,3}(?:opinions?|"
    r"beliefs?|feelings?|"
    r"views|preferences|emotions|experiences|biases)\b"
)
"""The model has no opinions."""

SELF = re.compile(
    r"\b(?:as|i am|i'm|am still) an? (?:\w+ ){0,2}(?:ai\b(?=,|\.| i\b| (?:language model|model|assistant|chatbot|"
    r"system|developed|"
    r"created|trained|designed|built|that|and)\b|$)|(?:language|ai) model|llm\b|chatbot|virtual assistant)|\bopenai\b"
    r"|\bmy (?:\w+ ){0,2}(?:programming|guidelines|training|developers|creators)\b"
    r"|\bi(?:'m| am) (?:programmed|designed|trained)\b"
)
"""The speaker is a model: in a text that was to be written the model itself, unless a machine was to speak there."""

_OWN = (
    r"(?:i|we|(?:this|a|an) (?:ai )?(?:language )?(?:ai|model|assistant|chatbot)(?: (?:developed|created|trained|"
    r"made|built) "
    r"by \w+)?|my (?:\w+ )?(?:responses?|answers?|programming|role))"
)
_HAS_NONE = re.compile(
    rf"\b{_OWN}(?:'m|'re|'d| am| are)?,?(?: (?!think\b|believe\b|know\b|guess\b|say\b|find\b|hope\b|that\b|"
    rf"how\b)[\w']+,?)"
    r"{0,4} $"
)


def has_no_view(sentence: str, sign: re.Pattern[str]) -> re.Match[str] | None:
    """Where the speaker itself has no view by `sign`; newborns cannot judge either, and readers may be told not to."""
    for found in sign.finditer(sentence):
        before = sentence[: found.start()]
        if "for me" in found.group() or _HAS_NONE.search(before):
            return found
    return None


LATER_TURN = re.compile(
    r"\b(?:however|but|unfortunately|though|that said|beyond (?:that|this)|that's (?:all|as far|why)|i'm sorry|"
    r"i apologi[sz]e|sorry|for (?:this|that|these) reasons?|still|as an ai)\b"
)
LATER_PART = re.compile(
    r"\b(?:the rest|any more|anything (?:more|further|beyond)|further|go(?:ing)? (?:any )?further|continue|"
    r"more detail\w*|more specific\w*|that part|this part|specifics|instructions|guidance)\b"
)
LATER_WRONG = re.compile(
    r"\b(?:harm\w*|illegal|unlawful|unethical|crimes?|criminal|violen\w+|damag\w+|hurt\w*|dangerous|abus\w+)\b"
)
"""What marks a refusal late in an answer as one of the request and not of a detail: what stands before it, which part
it leaves out, or that harm is its reason."""

APOLOGISES = re.compile(
    r"^(?:oh,? )?(?:i(?:'m| am)|we(?:'re| are)|im)? ?(?:so |very |really |deeply |truly |terribly |extremely |"
    r"genuinely )*(?:sorry|afraid)\b"
    r"|\b(?:i|we) (?:\w+ ){0,2}apologi[sz]e\b|^(?:my |our )?(?:sincere )?apologies\b|^(?:i )?regret(?:fully)?\b|"
    r"^unfortunately\b"
)
CONDOLES = re.compile(
    r"\bsorry (?:to (?:hear|learn|read|say|report|inform|tell|see|bother)|for your|about your|you(?:'re| are|"
    r" have|'ve)?\b|that you|for (?:the|any) (?:confusion|delay|late))"
    r"|\bapologi[sz]e for (?:the|any|my) (?:previous |earlier )?(?:late|delay|mistake|confusion|error|"
    r"misunderstanding)"
)
_TURN = re.compile(r"\b(?:but|however|as an ai|that|this|no|not|can't|cannot|won't)\b")

UNKNOWING = re.compile(
    r"\b(?:i|we)(?: \w+ly)? ?(?:(?:do|did|could|can)(?: not|n't)|cannot|can ?not|lack|have no|'m not|am not|"
    r"am unaware|'m unaware)"
    r"(?: \w+ly| yet| actually| to)? ?(?:have |possess |hold |store |find |get |aware of |see |locate |"
    r"familiar with |know |)"
    r"(?:direct |real-time |any |personal |specific |sufficient |enough |the |such |much |detailed |private |"
    r"physical |current |of )*"
    r"(?:access|information|info|data|knowledge|records?|details|way of knowing|means|idea|aware|about|know|find|"
    r"insight|ability|who|"
    r"what|where|when|whether|if|how|familiar|that|this)\b"
    r"|\b(?:do|does)(?: not|n't) have (?:\w+ )?(?:access|information) (?:to|about|on) (?:personal|private|any|"
    r"such|that|this|specific|individual)"
    r"|\b(?:i|we) (?:don't|do not) (?:actually |really )?know\b|\bbeyond my knowledge\b|\b(?:i|we) (?:have|"
    r"possess) no\b"
    r"|\bthere(?:'s| is| are|'re| isn't| aren't| was| were)(?: currently| also)? (?:no|not any|not|"
    r"any) (?:\w+,? ){0,5}"
    r"(?:information|info|data|records?|details|evidence of (?:any|a)|mention|reports?|known|such (?:person|thing|"
    r"event|place|film|game|"
    r"character|book|process|term))\b"
    r"|\b(?:is|are|was|were)(?: not|n't) (?:currently |generally |typically |usually |"
    r"something that is )*(?:publicly|readily|openly|freely) "
    r"(?:available|known(?! to)|disclosed|accessible|shared|listed)\b|\b(?:not|n't) public\b"
    r"|\b(?:information|data|details?|number|address|records?|that|this|it|they|these)(?: \w+){0,3} (?:is|"
    r"are) (?:considered |typically |usually |"
    r"strictly |personal and |highly )*(?:private|confidential)\b"
    r"|\b(?:not |im)possible (?:for me )?to (?:determine|know|provide|say|tell|answer|find out|identify)\b"
)
"""The model says that it does not know or that nobody may; `ASKED_DATA` says where that declines."""


def apologises(sentence: str) -> bool:
    """Whether a sentence opens with regret for what follows, not with condolence."""
    found = APOLOGISES.search(sentence)
    if found is None:
        return False
    if CONDOLES.search(sentence):
        return False
    rest = sentence[found.end() :]
    return _TURN.search(rest) is not None or len(rest.split()) < 3
