"""What the inside of modelsync needs of the world, as Protocols: edges implement them, runtime calls them.

Nothing is decided here. Every method says what it raises, in the words of ``core.errors``.
"""

from __future__ import annotations

from modelsync.core.election.lease import Authority as Authority
from modelsync.core.election.lease import LeaseView as LeaseView
from modelsync.core.election.promise import Promise as Promise
from modelsync.core.sources.layout import SourceFile as SourceFile
from modelsync.ports.authority import Coordinator as Coordinator
from modelsync.ports.authority import EpochLedger as EpochLedger
from modelsync.ports.authority import PromisePeers as PromisePeers
from modelsync.ports.bus import Bus as Bus
from modelsync.ports.bus import CommandHeard as CommandHeard
from modelsync.ports.bus import Marked as Marked
from modelsync.ports.bus import Subscribed as Subscribed
from modelsync.ports.bus import Woken as Woken
from modelsync.ports.care import BytesCheck as BytesCheck
from modelsync.ports.care import CareApi as CareApi
from modelsync.ports.catalog import Beats as Beats
from modelsync.ports.catalog import Catalog as Catalog
from modelsync.ports.catalog import CatalogRead as CatalogRead
from modelsync.ports.catalog import Change as Change
from modelsync.ports.catalog import Glance as Glance
from modelsync.ports.catalog import LogChanges as LogChanges
from modelsync.ports.clock import Clock as Clock
from modelsync.ports.depot import Depot as Depot
from modelsync.ports.depot import DepotSweeper as DepotSweeper
from modelsync.ports.depot import Swept as Swept
from modelsync.ports.disk import ActiveRecord as ActiveRecord
from modelsync.ports.disk import CatalogDisk as CatalogDisk
from modelsync.ports.disk import HeldPart as HeldPart
from modelsync.ports.disk import LiveLinks as LiveLinks
from modelsync.ports.disk import Peer as Peer
from modelsync.ports.disk import Progress as Progress
from modelsync.ports.disk import Puller as Puller
from modelsync.ports.disk import ReceivedFile as ReceivedFile
from modelsync.ports.disk import VersionStore as VersionStore
from modelsync.ports.gates import Candidate as Candidate
from modelsync.ports.gates import RejectionDisk as RejectionDisk
from modelsync.ports.gates import Servers as Servers
from modelsync.ports.gates import Validator as Validator
from modelsync.ports.gates import Views as Views
from modelsync.ports.health_gate import HealthGate as HealthGate
from modelsync.ports.keeping import AskedModels as AskedModels
from modelsync.ports.keeping import VersionCache as VersionCache
from modelsync.ports.node_api import Growing as Growing
from modelsync.ports.node_api import NodeApi as NodeApi
from modelsync.ports.node_api import Published as Published
from modelsync.ports.node_api import Upload as Upload
from modelsync.ports.signing import Signer as Signer
from modelsync.ports.signing import Verifier as Verifier
from modelsync.ports.sources import Listing as Listing
from modelsync.ports.sources import ReadySource as ReadySource
from modelsync.ports.sources import Scanner as Scanner
from modelsync.ports.sources import Sources as Sources
from modelsync.ports.sources import Watch as Watch
