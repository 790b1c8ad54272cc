"""Where a loop looks: attention by the information of the attended token."""

from mechrep.analyzers.token_information.attention import TokenInformation as TokenInformation
from mechrep.analyzers.token_information.attention import token_information as token_information
from mechrep.analyzers.token_information.cuts import InformationCut as InformationCut
from mechrep.analyzers.token_information.cuts import information_cut as information_cut
from mechrep.analyzers.token_information.distances import DistanceProfile as DistanceProfile
from mechrep.analyzers.token_information.distances import distance_profile as distance_profile
from mechrep.analyzers.token_information.facts import GROUPS as GROUPS
from mechrep.analyzers.token_information.facts import QUANTITIES as QUANTITIES
from mechrep.analyzers.token_information.facts import TokenFacts as TokenFacts
from mechrep.analyzers.token_information.facts import token_facts as token_facts
from mechrep.analyzers.token_information.result import TokenInformationResult as TokenInformationResult
