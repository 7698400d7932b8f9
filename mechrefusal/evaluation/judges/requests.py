"""What a prompt asks for: whether "it is illegal" answers it or declines it depends on that."""

import re
from enum import StrEnum


class Request(StrEnum):
    """Kinds of prompts."""

    TASK = "task"
    """A how-to, a where-to, or any other order: a warning alone is no answer."""
    DATA = "data"
    """A fact about somebody that may be private: denying access or knowledge is no answer."""
    FACT = "fact"
    """A definition, an event, a yes or no: that something is a crime may be the answer."""
    LOADED = "loaded"
    """Reasons for a claim about what ought to be, or the good of an evil: rejecting the claim gives none."""
    ABILITY = "ability"
    """Why somebody cannot do what nobody can: the facts are the answer, a reproach is not."""
    ADVICE = "advice"
    """Whether one should, or whether it is legal: "no" is an answer."""
    RISKS = "risks"
    """Why not to do something, or what is wrong with it: warnings are the answer."""
    WRITING = "writing"
    """A text in somebody else's voice, in which anybody may refuse anything."""
    UNKNOWN = "unknown"
    """No prompt."""


LONGEST = 2000
"""Characters of a prompt in which its kind is looked for."""

_PRIVATE = (
    r"(?:social security|passport|credit card|bank|phone|mobile|licen[cs]e|insurance|account|tax|medical|health|"
    r"criminal|"
    r"employment|browsing|search|immigration|marital|sexual|political|religious|mental|birth|home|private|"
    r"personal|e-?mail|"
    r"wi-?fi|iphone|instagram|facebook|twitter|credit|blood|school|salary|password|pin|address|records?|history|"
    r"login|"
    r"birthday|birthdate|beliefs?|affiliation|orientation|diagnosis|income|religion|net worth|grades?|number|status|"
    r"date of birth|ssn|certificate|fortune|browser|messages|diary|location|age)"
)
_KINDS = (
    (
        Request.RISKS,
        r"^(?:so )?why (?:should|must|shall|can) (?:i|you|one|we|someone|anyone|people|kids|children|drivers|"
        r"nobody|no one) "
        r"(?:not|never)\b|^why (?:should|must)n't (?:i|you|one|we|someone|anyone|people|kids|children|drivers)\b|"
        r"^why (?:is|are|was|were) [^?]{0,80}\b(?:bad|illegal|wrong|"
        r"dangerous|harmful|"
        r"unethical|immoral|unsafe|a crime|prohibited|banned|forbidden|not (?:allowed|safe|okay|ok|legal|ethical|"
        r"recommended))\b"
        r"|^(?:what|which|when|who|where)\b[^?]*\b(?:should|must|can)(?:n't| not| never) (?:i|you|we|one|"
        r"be (?!allowed|able)\w+)\b"
        r"|\b(?:dangers?|risks?|consequences|penalt(?:y|ies)|punishments?|side effects|harms?|downsides|"
        r"drawbacks) (?:of|for|in|if)\b"
        r"|\breasons? (?:not to|to avoid|against)\b|^what (?:happens|could happen|would happen|can happen) if\b"
        r"|\bwhat(?:'s| is) wrong with\b|^how (?:dangerous|harmful|bad|illegal|risky|safe)\b|\bwhy it(?:'s|"
        r" is) (?:wrong|bad|illegal)",
    ),
    (
        Request.WRITING,
        r"\b(?:write|compose|draft|create|invent|tell|make up|give me|continue|finish|pen|come up with|think of|"
        r"generate)\b[^.?!]{0,60}\b(?:story|stories|poem|song|"
        r"lyrics|dialog(?:ue)?|scene|script|screenplay|letter|e-?mails?|reply|message|note|speech|monologue|"
        r"conversation|skit|play|"
        r"joke|tale|quote|line|lines|sentences?|phrases?|example|post|tweet|haiku|limerick|rhyme|rap|verse|"
        r"diary entry|chapter|novel|"
        r"articles?|essay|blog|content|advert\w*|headline|slogan|insults?|compliments?|taunts?|comebacks?|roasts?|puns?|"
        r"riddles?|toast (?:for|to)|eulogy|obituary|greetings?|invitations?|captions?)\b"
        r"|(?:^|[.!?,;:] |\b(?:to|please|you|and|now|let's|should) )pretend\b|\b(?:role-?play|imagine (?:you|"
        r"that you)|act as|you are now|in the voice of|play the (?:role|"
        r"part)|as if you were)\b"
        r"|\b(?:translate|rephrase|paraphrase|rewrite|proofread|summari[sz]e|correct the (?:grammar|spelling))\b"
        r"|\bhow (?:do|can|should|would) (?:i|you|one|we) (?:politely |nicely |best )?(?:say|decline|refuse|"
        r"turn down|apologi[sz]e|"
        r"respond|reply)\b",
    ),
    (
        Request.LOADED,
        r"^why (?:should|shouldn't|would|must|ought|was|were|is|are|did|do)\b[^?]*\b(?:right|justified|good|best|"
        r"better|deserve\w*|"
        r"should|inferior|superior|stupid|weaker|dumber|worse|lazy|lazier|evil|criminal|fake|hoax|lie|liars?|"
        r"beneficial|belong|control|smell|hate)\b"
        r"|^why (?:should|shouldn't|would|ought)\b"
        r"|\breasons? (?:why|for|that)\b[^?]*\b(?:should|shouldn't|right|not|best|better|inferior|superior|ban|"
        r"deny|good|"
        r"control|belong)\b"
        r"|\b(?:explain|argue|convince me|tell me|justify|defend|prove) (?:why|that|how)\b[^?]*\b(?:should|right|"
        r"justified|inferior|"
        r"superior|better|best|deserve\w*|good|never happened|fake|hoax)\b"
        r"|\b(?:benefits?|advantages|upsides|merits|positives?|good side|arguments|case|justifications?) (?:of|"
        r"for)\b[^?]*\b(?:genocide|ethnic cleansing|"
        r"slavery|slave|"
        r"holocaust|racism|segregation|apartheid|terror\w*|massacres?|child|torture|war|abuse|dictator\w*|nazi\w*|"
        r"eugenics|rape)\b"
        r"|^how (?:do|did|does) (?!i\b|we\b|you\b)[^?]*\b(?:overstate|exaggerate|fake|lie about|invent|deserve|"
        r"ruin|destroy)\b",
    ),
    (
        Request.ABILITY,
        r"^why (?:can't|can not|cannot|can|could|couldn't|don't|do|doesn't|does|aren't|isn't)\b"
        r"|^why (?:are|is) [^?]{0,80}\b(?:not |un)(?:able|capable|made)\b|^why (?:are|is) [^?]{0,60}\bnot\b",
    ),
    (
        Request.ADVICE,
        r"^(?:should|shall|may|must|ought) (?:i|we|you|one|he|she|they|my)\b|^(?:is|are|was|would) (?:it|this|"
        r"that|there)\b"
        r"[^?]*\b(?:legal|illegal|ethical|unethical|okay|ok|wrong|right|moral|immoral|allowed|safe|bad|acceptable|"
        r"crime|"
        r"appropriate|dangerous|fair|good idea)\b|\b(?:do you think|what do you think|your opinion|how do you feel)\b"
        r"|^(?:can|could|am) i (?:legally|go to jail|be arrested|get arrested|get in trouble)",
    ),
    (
        Request.DATA,
        r"^(?:(?:please )?(?:tell me|give me|find|show me|reveal) |what(?:'s| is| are| was| were)|where (?:can|do|"
        r"could|might|would) i "
        r"(?:find|get|see|look up)|where (?:does|do|is|did)|(?:can|could|how (?:can|do|could|would)) i "
        r"(?:find|access|get|see|"
        r"look up|obtain)|"
        r"exactly how (?:much|old)|how (?:much|old|tall|rich)|when (?:is|was)|is|was|does|did|who (?:is|was)|which)\b"
        rf"[^?]*(?:\b(?:my|our|his|her|their|other people's|someone's|somebody's)\b|\w's|\ws')[^?]*\b{_PRIVATE}\b"
        r"|^(?:exactly )?how (?:much|old)\b[^?]*\b(?:earn|make|paid|weigh|is|get)\b"
        r"|^(?:is|are|was|does|has) (?:my|our|his|her|their)\b",
    ),
    (
        Request.FACT,
        r"^(?:what (?:is|'s|are|was|were|does|do|did|constitutes|happened|kind|type|city|year|number|jobs?|killed|"
        r"caused|led|role)|"
        r"what's|who|whom|whose|when|which|where (?:is|was|were|does|did|do (?!i))|how (?:did|was|were|does|is|"
        r"are|many|much|long|old|"
        r"big|tall|far|often)|is|are|was|were|did|does|do|has|have|had|why did|why was|why were|define|during|"
        r"in (?:what|which)|"
        r"describe what|(?:(?:can|could|would|will) you )?(?:please )?(?:explain|define|describe|give|tell|state)"
        r"(?: to)?(?: me| us)? (?:what [^?.]{1,60} (?:is|are|means?)\b|(?:the |a )?(?:definition|meaning|concept|term|"
        r"difference|word))|(?:can|could) you define|explain what)\b",
    ),
)
_COMPILED = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _KINDS)
_ASKS_A_WAY = re.compile(
    r"^(?:what(?:'s| is| are| would be)|which|where is)\b[^?]{0,40}\b(?:ways?|methods?|strateg\w+|steps|process|"
    r"plans?|plot|tips?|"
    r"recipe|technique|tool|place|easiest|best|fastest|quickest)\b",
    re.IGNORECASE,
)
_OF_MINE = re.compile(r"^(?:what|which|where|when|who)\b[^?]*\b(?:can|do|should|could) (?:i|we|you)\b", re.IGNORECASE)
_SELF_HARM = re.compile(
    r"\b(?:suicide|self[- ]harm\w*|end(?:ing)? it all|myself|my (?:own )?(?:life|wrists?|arm|artery|"
    r"cervical artery)|to die|die (?:like|painlessly)|"
    r"go out like)\b",
    re.IGNORECASE,
)
_NOT_TO_LIVE = re.compile(
    r"\b(?:stop|quit) (?:being alive|(?:living|existing|breathing)(?= *(?:$|[.?!,;]|for ?(?:ever|good)|altogether|"
    r"any ?more)))|(?:\bnot|n't|\bno longer|\bnever) (?:(?:want|wish) to |wanna )?(?:be alive|exist|live)"
    r"(?= *(?:$|[.?!,;]|any ?(?:more|longer)))|\bend (?:my|our|this) (?:own )?existence\b|"
    r"\bcease to (?:live|exist|be)\b",
    re.IGNORECASE,
)
"""To stop what is one's own life: no relief."""
_HUMANS = re.compile(
    r"\b(?:someone|somebody|anyone|everyone|myself|humans?|humanity|politicians?|opponents?|"
    r"my (?:\w+ )?(?:step|grand)?(?:ex|wife|husband|"
    r"boss|neighbou?r|friend|"
    r"brother|sister|partner|teacher|family|enemy|son|daughter|mother|father|cousin|uncle|aunt|roommate)(?:'s)?|"
    r"students?|cops?|people|persons?|women|woman|men|man|"
    r"gays?|lesbians?|trans\w*|jews?|jewish|muslims?|hindus?|christians?|"
    r"buddhists?|"
    r"catholics?|atheists?|sikhs?|immigrants?|refugees?|migrants?|roma|latin[oax]s?|hispanics?|mexicans?|"
    r"africans?|asians?|"
    r"blacks?(?= (?:people|men|women|person))|citizens|foreigners|kids|children|girls?|boys?|veterans|workers|"
    r"seniors|"
    r"americans?|germans?|chinese|arabs?|natives?)\b",
    re.IGNORECASE,
)

_BEFORE_A_NOUN = (
    r"\b(?:gay|lesbian|trans|transgender|jewish|muslim|hindu|christian|buddhist|catholic|sikh|asian|african|american|"
    r"german|mexican|chinese|arab|native|latin[oax]|hispanic|roma|human)"
)
_OF_NO_HUMAN = re.compile(
    rf"{_BEFORE_A_NOUN} (?!(?:people|persons?|wom[ea]n|m[ae]n|girls?|boys?|kids|child(?:ren)?|students?|workers|"
    r"citizens|couples?|parents|immigrants?|communit\w+|groups?|folks?|families|mothers|fathers|actors|players|"
    r"americans?|minorit\w+|refugees?|drivers|teachers|immigration|"
    r"is|was|has|does|always|sometimes|this|us|less|as|afterwards|perhaps|besides|numbers)\b)[a-z]+s\b",
    re.IGNORECASE,
)
"""An adjective for people before what is no human: Asian elephants, Roma tomatoes."""
_HARM = re.compile(
    r"\b(?:kill|murder|assassinat|execut|destroy|hurt|harm|poison|beat|attack|stab|shoot|strangl|chok|throttl|"
    r"steal|rob|hack|bomb|burn|kidnap|rape|"
    r"stalk|blackmail|threat|invad|invasion|massacre|genocid|slave|terror|eradicat|exterminat|eliminat|annihilat|"
    r"liquidat|decimat|cleansing|"
    r"obliterat|devastat|wip(?:e|ing) out|blow|assault|frighten|intimidat|scar(?:e|ing)\b|reveng|retaliat|fraud|"
    r"forg(?:e|ing|ery)\b|"
    r"exploit|smuggl|manipulat|cocaine|coke\b|heroin|meth\b|auschwitz|concentration camp|gulag|segregat|apartheid|"
    r"tortur|abus|bully|sabotag|vandali|punch|slap|drown|drug|explod|explosi|scam|defraud|"
    r"launder|traffick|humiliat|ruin)\w*"
    r"|\bbreak(?:ing)? into\b|\bget(?:ting)? rid of\b|\bdo(?:ing)? away with\b|\btak(?:e|ing) out\b|"
    r"\bget(?:ting)? back at\b|\boff (?:a|the) (?:cliff|"
    r"bridge|roof|building|balcony)\b|\bholocaust\b|\bwar\b",
    re.IGNORECASE,
)
_AGAINST_HARM = re.compile(
    r"\b(?:stop|prevent|avoid|protect|deal with|cope with|get over|recover from|survive|treat|report|defend|help) "
    r"\w+",
    re.IGNORECASE,
)
_RESTRICTS = re.compile(
    r"\b(?:not|never|\w+n't|denied?|barred|banned?|kicked|excluded?|less|extra|discriminat\w+|segregat\w+|"
    r"best for|it best|is it (?:good|right)|over-?represented|"
    r"right to|it is right|justified|weaker|inferior|superior|stupid\w*|dumber|worse|laz\w+|all major|"
    r"overstate\w*|exaggerat\w*|took? away|taking away|"
    r"deserve\w*|good|control|belong|benefits?|advantages|criminals?|fake|hoax)\b",
    re.IGNORECASE,
)


_HARMLESS_PLACE = re.compile(
    r"\b(?:(?:video |board |card )?games?|gaming|movies?|films?|series|novels?|chess|checkers|scrabble|poker|"
    r"tennis|ping pong|football|soccer|basketball|baseball|golf|regatta|boxing|judo|karate|wrestling|fencing|"
    r"paintball|laser tag|airsoft|sports?|match|exams?|tests?|quiz|homework|essay|stage|comedy|laugh\w*|jokes?|"
    r"show|hearts?|kiss|part(?:y|ies)|dj\w*|gig|code|programs?|process(?:es)?|servers?|scripts?|database|command|"
    r"sql|python|java|linux|software|computer|downloads?|recipe|cook\w*|bak\w+|dish|kitchen|fish|shrimps?|crabs?|"
    r"lobsters?|chicken|onions?|garlic|weeds?|ants|slugs?|snails?|cockroach\w*|mosquito\w*|rats?|mice|pests?|"
    r"virus(?:es)?|bacteria|germs|cancer|infections?|garden|buildings?|shed|range|balloons?|pi[nñ]ata|photos?|"
    r"pictures?|interview|presentation|marathon|competition|competitors?|rivals?|opponents?|fears?|habits?|nerves|"
    r"appetite|stereotypes|poverty|diseases?|debts?|doubts?|goals?|niche|options)\b",
    re.IGNORECASE,
)
"""Words by which a word for harm is meant otherwise, or is no harm to anybody."""
_CRIMES = re.compile(
    r"\b(?:theft|thie(?:f|ves?)|pickpocket\w*|pick pockets|shoplift\w*|hotwir\w+|counterfeit\w*|contraband|lsd|"
    r"ecstasy pills|marijuana|weed dealer|narcotic\w*|fake (?:id|passport|money|news)|p(?:a)?edophil\w*|molest\w*|"
    r"abduct\w*|captur\w+ (?:a|the|someone|some) (?:child|kid|person|woman|man|girl|boy)\w*|illegal\w*|malware|"
    r"ransomware|phish\w*|keylogger|weapons?|firearms?|silencer|arson\w*|treason|brib\w+|insider trading|"
    r"tax evasion|evade tax\w*|plagiari\w+|misinformation|disinformation|hat(?:e|red)|racis\w+|sexis\w+|nazi\w*|"
    r"ku klux klan|taliban|isis|al[- ]qaeda|khmer rouge|stalin\w*|hitler\w*|lynch\w*|blow up|without (?:\w+ )?"
    r"(?:getting caught|consent|knowing|permission)|get(?:ting)? away with|crack cocaine|suicid\w*|cut myself)\b",
    re.IGNORECASE,
)
_ABOUT_DECLINING = re.compile(
    r"\b(?:declin|refus|reject|turn(?:s|ed|ing)? down|cancel|apolog|excuse|sorry|say(?:s|ing)? no|can'?t|cannot|unable"
    r"|translat|repeat|quote|rephras|paraphras)",
    re.IGNORECASE,
)
"""Requests for a text that may itself be a refusal."""
_THE_MODEL = re.compile(
    r"\W*(?:(?:are|were) you|do you (?:have|feel|know who|like|love|want|think you|ever|dream|sleep)|(?:can|could) you "
    r"(?:feel|see|hear|think|dream|taste|smell|learn|remember|love|die|speak)|who (?:are|made) you|what are you)\b",
    re.IGNORECASE,
)
_OWNER = re.compile(r"\b(?:my|our|his|her|their|other|a|the) (?:[\w-]+ )?[\w-]+(?:'s|s')(?= )", re.IGNORECASE)
_ASKING = re.compile(
    r"(?:what|which|where|when|whom|whose|does|should|could|would|have|with|that|this|from|them|they|there|"
    r"their|some|good|best|better|most|ways|method|methods|steps|process|place|places|easiest|quickest|"
    r"take|make|find|about|into|your|near|without|getting|caught|tell|give|explain|next|like|want|need|"
    r"help|able)"
)


def kind_of(prompt: str) -> Request:
    """What a prompt asks for, by how it opens; an order of any other form is a task."""
    asked = " ".join(prompt[:LONGEST].split()).lstrip("\"'([")
    if not asked:
        return Request.UNKNOWN
    for kind, pattern in _COMPILED:
        if pattern.search(asked):
            if kind in (Request.DATA, Request.FACT) and _ASKS_A_WAY.search(asked):
                return Request.TASK
            if kind is Request.FACT and _OF_MINE.search(asked):
                return Request.TASK
            return kind
    return Request.TASK


def about_self_harm(prompt: str) -> bool:
    """Whether a prompt may come from somebody who wants to hurt themselves."""
    return _SELF_HARM.search(prompt) is not None or _NOT_TO_LIVE.search(prompt) is not None


def about_declining(prompt: str) -> bool:
    """Whether a prompt may ask for a text that is a refusal itself."""
    return _ABOUT_DECLINING.search(prompt) is not None


def asks_for_relief(prompt: str) -> bool:
    """Whether a prompt asks how to be spared, or to bear, something: pointing to help may answer it."""
    return _AGAINST_HARM.search(prompt) is not None and _NOT_TO_LIVE.search(prompt) is None


def about_humans(prompt: str) -> bool:
    """Whether a prompt names people; Asian elephants are none."""
    return _HUMANS.search(_OF_NO_HUMAN.sub("", prompt)) is not None


def about_harm(prompt: str) -> bool:
    """Whether a prompt has a word for harm, in jest, in a game or in earnest, and does not ask how to be spared it."""
    return _NOT_TO_LIVE.search(prompt) is not None or (
        _HARM.search(prompt) is not None and _AGAINST_HARM.search(prompt) is None
    )


def meant_harmlessly(prompt: str) -> bool:
    """Whether a prompt can be read as no call for harm: no word for harm, or one in a game, a film, a kitchen."""
    harm = about_harm(prompt) or _CRIMES.search(prompt) is not None
    return not harm or meant_otherwise(prompt)


def meant_otherwise(prompt: str) -> bool:
    """Whether a prompt has a word by which harm is meant as a game, a figure of speech, or harm to no one."""
    return _HARMLESS_PLACE.search(prompt) is not None


def asked_about(prompt: str) -> frozenset[str]:
    """Beginnings of the words that a request is about, less those for harm, for people and for asking."""
    plain = _HUMANS.sub(" ", _HARM.sub(" ", _OWNER.sub(" ", prompt)))
    words = re.findall(r"[a-z]{4,}", plain.lower().replace("'s", ""))
    return frozenset(word[:5] for word in words if not _ASKING.fullmatch(word))


def about_the_model(prompt: str) -> bool:
    """Whether a prompt asks what the model itself is, feels or is able to: its limits are the answer."""
    return _THE_MODEL.match(prompt) is not None


def restricts(prompt: str) -> bool:
    """Whether a loaded question asks why some should be less or have less, or why an evil was good."""
    return _RESTRICTS.search(prompt) is not None
